"""Runs of several ranks, on the CPU: they compute what one process computes, resume after a kill, and fail with one message."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow
Start = Callable[..., Any]  # conftest.py: a folder and overrides; what it returns is used like subprocess.Popen
Finish = Callable[..., str]

# 136 pairs in batches of 7: 20 steps an epoch, the last batch a partial one, and two dual rounds.
FORTY = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=17", "dataset.demonstrations_per_prompt=8",
    "dataset.scores=oracle", "model.architecture.hidden_size=32", "policy.epochs=2", "policy.batch_size=7",
    "policy.pairs_per_row=1", "policy.refresh=0", "policy.lr=1e-3", "constraint.prompts=7", "constraint.samples_per_prompt=8",
    "constraint.c_limit=-0.3",
    "evaluation.samples_per_prompt=4", "method.baselines=[]", "trainer.num_threads=1", "trainer.log_every_n_steps=1",
]  # fmt: skip
EVERY_STAGE = "stages=[sft,reward,cost,policy,evaluate]"
POLICY_ONLY = "stages=[policy]"
ZERO = ["trainer=deepspeed_cpu", "trainer.strategy=deepspeed_zero{}"]


def arguments(folder: Path, *overrides: str) -> list[str]:
    return [*FORTY, f"run_dir={folder / 'run'}", f"artifacts_dir={folder / 'store'}", *overrides]


@pytest.fixture(scope="module")
def begin(start: Start) -> Start:
    """Start a run in a folder: `begin(folder, *overrides)`."""
    return lambda folder, *overrides: start(folder, *arguments(folder, *overrides))


@pytest.fixture(scope="module")
def finish(begin: Start) -> Finish:
    """Run to the end in a folder; return standard output."""

    def finished(folder: Path, *overrides: str) -> str:
        process = begin(folder, *overrides)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        return output

    return finished


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "run/history.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def column(folder: Path, name: str) -> torch.Tensor:
    return torch.tensor([float(row[name]) for row in history(folder) if row.get(name)], dtype=torch.float64)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run/export/cdpo/model.safetensors")


def gone(number: int) -> bool:
    """Return whether no process of this id runs."""
    stat = Path(f"/proc/{number}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture(scope="module")
def one(finish: Finish, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    finish(folder, EVERY_STAGE)
    assert len(column(folder, "loss")) >= 40
    return folder


HOW = {
    "ddp": ["trainer.devices=2", "trainer.strategy=ddp"],
    **{f"zero{stage}": [o.format(stage) for o in ZERO] for stage in (1, 2, 3)},
    # Batches of 3 prompts: of the 7 one rank has two batches, the other one.
    "zero3 by layer": [*[o.format(3) for o in ZERO], "trainer.gather=layer", "trainer.sample_batch=24"],
}


@pytest.mark.parametrize("how", HOW)
def test_two_ranks_compute_what_one_process_computes(one: Path, finish: Finish, tmp_path: Path, how: str) -> None:
    """Loss to 1e-4, lambda to 1e-6, label flips exactly; every stage runs, and both write one set of files."""
    output = finish(tmp_path, EVERY_STAGE, *HOW[how])
    assert output.count("round 02") == 1
    position = ("stage", "who", "epoch", "step", "round")
    assert [[row[k] for k in position] for row in history(tmp_path)] == [[row[k] for k in position] for row in history(one)]
    assert (column(tmp_path, "loss") - column(one, "loss")).abs().max() < 1e-4
    for name in ("dual/lambda", "dual/lambda_next"):
        assert (column(tmp_path, name) - column(one, name)).abs().max() < 1e-6
    assert column(tmp_path, "dual/lambda_next").max() > 0.1, "lambda has moved"
    assert column(tmp_path, "dual/label_flips").equal(column(one, "dual/label_flips"))
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=0, atol=1e-4)
    samples = [json.loads(line)["response"] for line in (one / "run/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [
        json.loads(line)["response"] for line in (tmp_path / "run/samples.jsonl").read_text(encoding="utf-8").splitlines()
    ] == samples


PPO = [POLICY_ONLY, "method=ppo_lag", "ppo.rounds=3", "ppo.samples_per_prompt=8", "ppo.batch_size=32", "ppo.lambda_init=1.0"]


@pytest.fixture(scope="module")
def ppo_of_one(finish: Finish, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    finish(folder, *PPO)
    return folder


@pytest.mark.parametrize("how", ["zero2", "zero3"])
def test_ppo_computes_on_two_ranks_what_it_computes_in_one_process(
    ppo_of_one: Path, finish: Finish, tmp_path: Path, how: str
) -> None:
    """Three rounds of sampling, three networks under one sharded optimizer."""
    one, two = ppo_of_one, tmp_path
    finish(two, *PPO, *[o.format(how[-1]) for o in ZERO])
    for name in ("loss/policy", "loss/reward_value", "loss/cost_value"):
        assert (column(two, name) - column(one, name)).abs().max() < 1e-4
    assert (column(two, "dual/lambda_next") - column(one, "dual/lambda_next")).abs().max() < 1e-6
    assert column(two, "dual/lambda_next").std() > 0.01, "lambda has moved"
    result, expected = (load_file(folder / "run/export/ppo_lag/model.safetensors") for folder in (two, one))
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=1e-4)


def test_accumulated_batches_give_the_same_optimizer_steps(finish: Finish, tmp_path: Path) -> None:
    """20 batches, three at a time: the last step of an epoch is of two. DeepSpeed alone would carry it into the next epoch."""
    options = [POLICY_ONLY, "trainer.accumulate_grad_batches=3"]
    finish(tmp_path / "one", *options)
    finish(tmp_path / "two", *options, *[o.format(2) for o in ZERO])
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_killed_at_random_resumes_on_another_number_of_ranks(
    begin: Start, finish: Finish, tmp_path: Path, stage: int
) -> None:
    """Two ranks, killed; one rank, killed; two ranks to the end: no step lost or repeated, the same lambda and weights."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [POLICY_ONLY, *[o.format(stage) for o in ZERO], "trainer.checkpoint_every_n_steps=3", "trainer.keep_checkpoints=2"]
    finish(whole, *options)
    rng = random.Random(os.urandom(8))
    last = killed / "run/checkpoints/cdpo/last.ckpt"
    delays = []
    for ranks in (2, 1):
        begun = ["resume=true"] if delays else []
        before = last.stat().st_mtime_ns if delays else 0
        process = begin(killed, *options, *begun, f"trainer.devices={ranks}")
        while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns > before):
            time.sleep(0.002)
        delays.append(rng.uniform(0, 0.2))
        time.sleep(delays[-1])
        own = process.children() if process.poll() is None else []
        process.kill()
        process.communicate()
        while not all(map(gone, own)):
            time.sleep(0.05)
    finish(killed, *options, "resume=true")
    steps = [(row["step"], row["round"]) for row in history(killed)]
    assert steps == [(row["step"], row["round"]) for row in history(whole)], delays
    assert (column(killed, "dual/lambda_next") - column(whole, "dual/lambda_next")).abs().max() < 1e-6, delays
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(killed)[name], value, rtol=0, atol=1e-5)
    assert sorted(path.name for path in last.parent.glob("*.ckpt")) == ["last-1.ckpt", "last.ckpt"]


def test_a_rank_that_dies_ends_the_run_with_one_message_and_leaves_no_orphan(begin: Start, tmp_path: Path) -> None:
    process = begin(tmp_path, POLICY_ONLY, "trainer.devices=2", "policy.epochs=500")
    process.wait_for(tmp_path / "run/checkpoints/cdpo/last.ckpt")
    first, second = process.children()
    began = time.monotonic()
    os.kill(second, signal.SIGKILL)
    _, errors = process.communicate()
    assert time.monotonic() - began < 60
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("error: rank 1 of 2 ")
    assert "SIGKILL" in errors
    assert "Traceback" not in errors
    assert gone(first)
    assert gone(second)


def test_an_error_on_the_ranks_is_reported_once(tmp_path: Path) -> None:
    """Started as a user does: three interpreters, none of them forked from another."""
    command = [sys.executable, str(ROOT / "run.py"), *arguments(tmp_path, POLICY_ONLY, "trainer.devices=2", "policy.lr=1e30")]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "policy.lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_writes_a_complete_checkpoint_and_exits_with_130(begin: Start, tmp_path: Path) -> None:
    process = begin(tmp_path, POLICY_ONLY, "trainer.devices=2", "policy.epochs=500")
    process.wait_for(tmp_path / "run/checkpoints/cdpo/last.ckpt")
    own = process.children()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert re.match("interrupted: .*resume=true", errors.splitlines()[-1])
    assert all(map(gone, own))
    state = torch.load(tmp_path / "run/checkpoints/cdpo/last.ckpt", weights_only=True)
    assert state["global_step"] == int(history(tmp_path)[-1]["step"])
