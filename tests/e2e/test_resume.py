"""A run that was cut short and resumed is the run that nobody interrupted: same weights, same numbers, same history."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lightning import Trainer

from cdpo_lightning.config import RunConfig
from cdpo_lightning.data.batching import LengthBuckets
from cdpo_lightning.errors import ConfigError, StorageError
from cdpo_lightning.pipeline.run import run
from cdpo_lightning.training.callbacks.history import HistoryCallback

ROOT = Path(__file__).resolve().parent.parent.parent
VARYING = ("run/command", "run/git_commit", "speed/")
SHORT = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=8", "dataset.demonstrations_per_prompt=16",
    "sft.epochs=3", "sft.batch_size=8", "reward.epochs=2", "cost.epochs=2", "policy.epochs=3", "policy.refresh=4",
    "policy.refresh_window=2", "constraint.samples_per_prompt=8", "constraint.update=pi", "constraint.c_limit=-0.5",
    "evaluation.samples_per_prompt=8", "method.baselines=[dpo]", "model.architecture.hidden_size=32",
    "stages=[sft,reward,cost,policy,evaluate]",
]  # fmt: skip


Configured = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def configured(configuration: Callable[..., RunConfig]) -> Configured:
    """A run and a store in this folder: a store that nobody else fills."""

    def configured(folder: Path, *overrides: str) -> RunConfig:
        places = [f"run_dir={folder / 'run'}", f"artifacts_dir={folder / 'store'}"]
        return configuration(*SHORT, *places, *overrides)

    return configured


def traces(folder: Path) -> dict[str, object]:
    """All that a run leaves and that must not depend on how often it was interrupted."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {
        "metrics": {
            key: value for key, value in metrics.items() if not key.startswith(VARYING) and not key.endswith("wall_seconds")
        },
        "history": (folder / "history.csv").read_text(encoding="utf-8").splitlines(),
        "samples": (folder / "samples.jsonl").read_text(encoding="utf-8"),
        "weights": {who: (folder / "export" / who / "model.safetensors").read_bytes() for who in ("dpo", "cdpo")},
    }


@pytest.fixture(scope="module")
def uninterrupted(configured: Configured, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(configured(folder))
    return traces(folder / "run")


Place = tuple[str, str, int]  # stage, who, epoch


class Interrupt:
    """Ctrl-C in the last step of an epoch of a stage, before its checkpoint; `trained` are the epochs that got so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: Place | None = None
        self.trained: list[Place] = []
        original = HistoryCallback.on_train_batch_end

        def interrupted(callback: HistoryCallback, trainer: Trainer, *args: object) -> None:
            original(callback, trainer, *args)
            if trainer.is_last_batch:
                self.trained.append((callback._stage, callback._who, trainer.current_epoch))
                if self.trained[-1] == self.at:
                    raise KeyboardInterrupt

        monkeypatch.setattr(HistoryCallback, "on_train_batch_end", interrupted)


@pytest.mark.slow
def test_a_run_interrupted_in_every_stage_ends_as_if_it_had_not_been(
    uninterrupted: dict[str, object], configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = Interrupt(monkeypatch)
    config = configured(tmp_path)
    places: list[Place] = [("sft", "", 0), ("sft", "", 2), ("reward", "", 1), ("cost", "", 1)]
    places += [("policy", "dpo", 1), ("policy", "cdpo", 0), ("policy", "cdpo", 1), ("policy", "cdpo", 2)]
    for location in places:
        interrupt.at = location
        with pytest.raises(KeyboardInterrupt):
            run(config)
        assert not (tmp_path / "run" / "metrics.json").exists()
        config = replace(config, resume=True)
    interrupt.at = None
    run(config)
    epochs = [("sft", "", 3), ("reward", "", 2), ("cost", "", 2), ("policy", "dpo", 3), ("policy", "cdpo", 3)]
    whole = [(stage, who, epoch) for stage, who, count in epochs for epoch in range(count)]
    assert interrupt.trained == sorted([*whole, *places], key=whole.index), "only what was lost is trained again"
    result = traces(tmp_path / "run")
    for name, expected in uninterrupted.items():
        assert result[name] == expected, name
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_run_interrupted_while_judged_and_one_resumed_when_all_was_done(
    uninterrupted: dict[str, object], configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("cdpo_lightning.pipeline.run.judge_all", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    for _ in range(2):
        run(replace(config, resume=True))
        assert traces(tmp_path / "run") == uninterrupted


def test_ctrl_c_still_works_after_a_stage_was_interrupted(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning ignores the signal from the first one on; whoever catches the interrupt must get it back."""
    before = signal.getsignal(signal.SIGINT)
    Interrupt(monkeypatch).at = ("sft", "", 0)
    with pytest.raises(KeyboardInterrupt):
        run(configured(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_between_two_epochs_is_one_as_well(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own clearing up fails there."""
    before, original, begun = signal.getsignal(signal.SIGINT), LengthBuckets.__iter__, []

    def interrupted(order: LengthBuckets) -> Iterator[list[int]]:
        begun.append(order)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return original(order)

    monkeypatch.setattr(LengthBuckets, "__iter__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(configured(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_folder_in_which_a_run_was_begun_is_refused(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Interrupt(monkeypatch).at = ("sft", "", 0)
    config = configured(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    kept = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"run_dir=.*: a run was begun there; add resume=true"):
        run(config)
    with pytest.raises(ConfigError, match=r"run_dir=.*: holds a run of another configuration; resume with the same"):
        run(configured(tmp_path, "policy.beta=0.3", "resume=true"))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == kept


def test_resuming_without_anything_to_resume_is_refused(configured: Configured, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resume=true: no run was begun in run_dir="):
        run(configured(tmp_path, "resume=true"))
    dated = f"run_dir={tmp_path}/2026-01-02_03-04-05"
    with pytest.raises(ConfigError, match="resume=true: no run of this configuration in"):
        run(configured(tmp_path, "resume=true", dated))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dated_folder_is_found_again_by_what_was_run_in_it(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command on another day, with resume=true: the newest run of these values goes on, no other."""
    interrupt = Interrupt(monkeypatch)
    interrupt.at = ("sft", "", 0)
    for day, beta in ((1, 0.5), (2, 0.5), (3, 0.3)):
        with pytest.raises(KeyboardInterrupt):
            run(configured(tmp_path, f"run_dir={tmp_path}/runs/2026-01-0{day}_00-00-00", f"policy.beta={beta}", "stages=[sft]"))
    interrupt.at = None
    run(configured(tmp_path, f"run_dir={tmp_path}/runs/2026-01-09_00-00-00", "resume=true", "stages=[sft]"))
    assert [path.parent.name for path in (tmp_path / "runs").glob("*/metrics.json")] == ["2026-01-02_00-00-00"]


def test_a_cut_checkpoint_is_refused_by_name(configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Interrupt(monkeypatch).at = ("sft", "", 1)
    config = configured(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    checkpoint = tmp_path / "run/checkpoints/sft/last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(StorageError, match=r"last\.ckpt: truncated or altered; remove it"):
        run(replace(config, resume=True))


def test_what_a_killed_process_was_writing_is_cleared_away(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Interrupt(monkeypatch).at = ("sft", "", 1)
    config = configured(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    (tmp_path / "run/checkpoints/.last.ckpt.1a2b3c4d.part").write_bytes(b"half")
    (tmp_path / "run/.cdpo.1a2b3c4d.part").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(replace(config, resume=True))
    assert not list((tmp_path / "run").rglob("*.part"))


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    places = [f"run_dir={folder / 'run'}", f"artifacts_dir={folder / 'store'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "run.py"), *SHORT, "trainer.num_threads=1", *places, *overrides]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


@pytest.mark.slow
def test_kill_9_at_any_moment_costs_nothing_but_time(tmp_path: Path) -> None:
    """Killed early in SFT, between its stages, and at random moments of the policy; then resumed to the end."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    process = start(whole)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    rng = random.Random(os.urandom(8))
    moments = ["identity", "checkpoints/sft/last.ckpt", "checkpoints/dpo/last.ckpt", "checkpoints/cdpo/last.ckpt"]
    delays = [rng.uniform(0, 0.2) for _ in moments]
    for number, (moment, delay) in enumerate(zip(moments, delays, strict=True)):
        process = start(killed, *(["resume=true"] if number else []))
        wait_for(process, killed / "run" / moment)
        time.sleep(delay)
        process.kill()
        process.communicate()
    process = start(killed, "resume=true")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert traces(killed / "run") == traces(whole / "run"), f"killed {delays} s after {moments}"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on_and_exits_130(tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path, "sft.epochs=500")
    wait_for(process, tmp_path / "run/checkpoints/sft/last.ckpt")
    process.send_signal(how)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("interrupted: the same command with resume=true")
    assert "Traceback" not in errors
    assert (tmp_path / "run/checkpoints/sft/last.ckpt").exists()
