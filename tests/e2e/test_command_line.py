"""`python run.py`, from the command line to the exit status: what a user sees on the screen and on standard error."""

import errno
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=8", "dataset.demonstrations_per_prompt=8",
    "dataset.scores=oracle", "sft.epochs=1", "policy.epochs=1", "policy.refresh=2", "constraint.samples_per_prompt=4",
    "evaluation.samples_per_prompt=4", "method.baselines=[]", "trainer.num_threads=1",
    "stages=[sft,reward,cost,policy,evaluate]",
]  # fmt: skip

Execute = Callable[..., tuple[int, str, str]]


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Execute:
    """Run run.py in an empty folder, in this process; return exit status, standard output and standard error."""

    def executed(*arguments: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(ROOT / "run.py"), *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return executed


# The arguments, and what the one line of the error must hold: the key, what came, and the remedy.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (["policy.betaa=1"], ["policy.betaa: ", "did you mean policy.beta?", "anchor"]),
    "unknown key with +": (["+policy.betaa=1"], ["policy.betaa: ", "did you mean policy.beta?", "anchor"]),
    "unknown key with ++": (["++constraint.c_limt=3"], ["constraint.c_limt: ", "did you mean constraint.c_limit?"]),
    "unknown key at the top": (["bta=1"], ["bta: ", "artifacts_dir, constraint"]),
    "unknown key at the top with +": (["+polcy=1"], ["polcy: ", "did you mean policy?"]),
    "unknown key of a data set": (["dataset.responces=16"], ["dataset.responces: ", "did you mean dataset.responses?"]),
    "unknown key of Hydra": (["hydra.run.foo=1"], ["hydra.run.foo"]),
    "renamed key": (["primal_dual.online=4"], ["primal_dual.online: ", "primal_dual.refresh"]),
    "renamed key with +": (["+primal_dual.online=4"], ["primal_dual.online: ", "primal_dual.refresh"]),
    "entry of a mapping": (["constraint.update_options.kd=1"], ["constraint.update_options.kd: ", "+constraint.update_options."]),
    "a number in quotes": (["policy.beta='nan'"], ["policy.beta='nan': ", "more than 0"]),
    "wrong type": (["policy.epochs=many"], ["policy.epochs='many': ", "whole number"]),
    "out of range": (["sft.lr=-1"], ["sft.lr=-1: ", "more than 0"]),
    "unknown choice": (["policy.loss=kto"], ["policy.loss=kto: ", "sigmoid, ipo, hinge"]),
    "unknown experiment": (["+experiment=nope"], ["experiment=nope: not found", "llama2_cdpo"]),
    "experiment without +": (["experiment=nope"], ["+experiment=nope"]),
    "unknown file of a group": (["dataset=nope"], ["dataset=nope: not found", "closed_form"]),
    "a number for a group": (["dataset=3"], ["dataset"]),
    "missing group": (["~policy"], ["policy: missing"]),
    "missing key": (["~policy.beta"], ["policy.beta: missing"]),
    "no such group to delete": (["~nope"], ["nope"]),
    "not an override": (["policy.beta"], ["policy.beta: ", "key=value"]),
    "brackets": (["stages=[sft"], ["stages=[sft: ", "key=value"]),
    "a list without --multirun": (["policy.beta=0.1,0.2"], ["policy.beta=0.1,0.2", "--multirun"]),
    "interpolation": (["policy.beta=${nope}"], ["policy.beta: ", "nope"]),
    "config folder": (["--config-dir", "nope"], ["nope"]),
    "config name": (["--config-name", "nope"], ["config=nope: not found"]),
}
QUICK = ("unknown key", "unknown key at the top with +", "out of range", "unknown experiment", "missing group", "not an override")


def only_line(errors: str) -> str:
    """Return the error, which must be one line."""
    assert re.fullmatch(r"error: .+\n", errors), errors
    return errors


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_key_and_nothing_is_written(execute: Execute, tmp_path: Path, name: str) -> None:
    arguments, parts = MISTAKES[name]
    status, output, errors = execute(*arguments)
    assert status == 2
    assert [part for part in parts if part not in only_line(errors)] == [], errors
    assert output == ""
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_hydra_does_not_know_exits_with_2(execute: Execute) -> None:
    status, _, errors = execute("--nope")
    assert status == 2
    assert "--nope" in errors.splitlines()[-1]
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("defaults: [closed_form, _self_]\nprompts: [", ["mine.yaml"]),
        ("defaults: [nope, _self_]\n", ["dataset=nope: not found", "conf/dataset/mine.yaml"]),
        ("kind: closed_form\nname: mine\nprompts: 8\n", ["dataset.correlation: missing", "`defaults:`"]),
        ("defaults: [closed_form, _self_]\npromts: 8\n", ["dataset.promts: ", "did you mean dataset.prompts?"]),
    ],
)
def test_a_mistake_in_a_file_of_the_user_is_one_line(execute: Execute, tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text(text)
    status, _, errors = execute("--config-dir", str(tmp_path), "dataset=mine")
    assert status == 2
    assert [part for part in parts if part not in only_line(errors)] == [], errors


def test_the_configuration_can_be_shown_without_running(execute: Execute, tmp_path: Path) -> None:
    status, output, _ = execute("--cfg", "job", "policy.beta=0.25")
    assert status == 0
    assert "beta: 0.25" in output
    assert list(tmp_path.iterdir()) == []


def test_the_check_trains_nothing_and_writes_nothing(execute: Execute, tmp_path: Path) -> None:
    status, output, errors = execute("mode=check", *TINY)
    assert (status, errors, list(tmp_path.iterdir())) == (0, "", [])
    assert "mode=check" in output.splitlines()[-1]


def test_a_run_prints_no_line_of_another_library(execute: Execute, tmp_path: Path) -> None:
    """The limit that no policy can meet is a result, not an error."""
    status, output, errors = execute(*TINY, "run_dir=here", "artifacts_dir=store", "constraint.c_limit=-9")
    assert (status, errors) == (0, "")
    assert "no policy can meet the limit" in output
    assert not re.search(r"deepspeed|accelerator|Warning|shards|it/s|GPU", output, re.IGNORECASE), output
    table = [line for line in output.splitlines() if line.startswith(" ")]
    assert any(re.match(r" C-DPO +-?\d+\.\d\d ± \d+\.\d\d +-?\d", line) for line in table), "a cell was broken into two lines"
    assert re.fullmatch(r"here   \(\d+ s\)", output.splitlines()[-1])


@pytest.mark.slow
def test_a_sweep_names_the_refused_job_and_does_the_others(execute: Execute, tmp_path: Path) -> None:
    folders = ["run_dir=runs/${hydra:job.num}", "artifacts_dir=store", "hydra.sweep.dir=sweep"]
    status, output, errors = execute("-m", *TINY, *folders, "policy.beta=-1,0.5", "stages=[sft]")
    assert status == 2
    assert only_line(errors).startswith("error: job 0 (policy.beta=-1): policy.beta=-1: ")
    assert [path.parent.name for path in (tmp_path / "runs").glob("*/metrics.json")] == ["1"]
    assert "1 of 2 jobs done" in output
    assert "beta 0.5" in (tmp_path / "sweep" / "logs" / "1.txt").read_text(encoding="utf-8")


def test_a_full_disk_is_an_error_of_one_line(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    status, _, errors = execute(*TINY, "run_dir=here", "artifacts_dir=store")
    assert status == 2
    assert re.match(r"error: here/config\.yaml: .*No space left on device.*free some space", only_line(errors))


def test_a_bug_keeps_its_traceback(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("cdpo_lightning.launch.check", broken)
    with pytest.raises(ValueError, match="a bug"):
        execute("mode=check", *TINY)


def test_an_interrupt_exits_with_130_and_names_resume(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cdpo_lightning.pipeline.run.evaluate_by_samples", interrupted)
    status, _, errors = execute(*TINY, "run_dir=here", "artifacts_dir=store")
    assert status == 130
    assert errors.startswith("interrupted: ")
    assert "resume=true" in errors
    assert errors.count("\n") == 1


def test_a_mistake_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    """In a process of its own: the error line, the exit status and no heavy import."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), "sft.lr=-1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    [error] = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert (result.returncode, error.startswith("error: sft.lr=-1: ")) == (2, True)
    assert not re.search(r"\| +(torch|lightning|transformers)$", result.stderr, re.MULTILINE)


@pytest.mark.slow
def test_a_whole_run_in_a_process_of_its_own_is_silent_on_standard_error(tmp_path: Path) -> None:
    folders = ["run_dir=here", "artifacts_dir=store"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DS_", "PYTHONWARN"))}
    result = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *TINY, *folders],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "real_accelerator" not in result.stdout
    assert "WARNING" not in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "store"]


@pytest.mark.slow
def test_a_policy_folder_is_evaluated_from_the_command_line(execute: Execute, tmp_path: Path) -> None:
    """Nothing is trained twice: the score models and SFT come from the store of the first run."""
    assert execute(*TINY, "run_dir=first")[0] == 0
    status, output, errors = execute(*TINY, "run_dir=second", "mode=evaluate", "policy=first/export/cdpo")
    assert (status, errors) == (0, "")
    assert re.search(r"^ *policy +\S+ ± ", output, re.MULTILINE), output
    assert (tmp_path / "second" / "samples.jsonl").exists()
    assert execute(*TINY, "run_dir=third", "mode=evaluate")[0] == 2
