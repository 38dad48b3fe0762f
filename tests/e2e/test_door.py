"""`python run.py`, from the command line to the exit status: what a user sees."""

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

Knock = Callable[..., tuple[int, str, str]]


@pytest.fixture
def knock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Knock:
    """run.py with these arguments in an empty folder, in this process: exit status, screen, standard error."""

    def knocked(*arguments: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(ROOT / "run.py"), *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return knocked


QUICK = ("unknown key", "unknown key at the top with +", "out of range", "unknown experiment", "group gone", "not an override")
MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown key": (["policy.betaa=1"], r"policy\.betaa: no such key; did you mean policy\.beta\? policy has anchor, "),
    "unknown key with +": (["+policy.betaa=1"], r"policy\.betaa: no such key; did you mean policy\.beta\? policy has anchor, "),
    "unknown key with ++": (["++constraint.c_limt=3"], r"constraint\.c_limt: no such key; did you mean constraint\.c_limit\?"),
    "unknown key at the top": (["bta=1"], r"bta: no such key; the top level has artifacts_dir, constraint, "),
    "unknown key at the top with +": (["+polcy=1"], r"polcy: no such key; did you mean policy\? the top level has "),
    "unknown key of a data set": (["dataset.responces=16"], r"dataset\.responces: no such key; did you mean dataset\.responses\?"),
    "unknown key of Hydra": (["hydra.run.foo=1"], r"hydra\.run\.foo: no such key$"),
    "renamed key": (["primal_dual.online=4"], r"primal_dual\.online: renamed to primal_dual\.refresh"),
    "renamed key with +": (["+primal_dual.online=4"], r"primal_dual\.online: renamed to primal_dual\.refresh"),
    "entry of a mapping": (["constraint.update_options.kd=1"], r"constraint\.update_options\.kd: .*\+constraint\.update_options\."),
    "a number in quotes": (["policy.beta='nan'"], r"policy\.beta='nan': expected a number, more than 0"),
    "wrong type": (["policy.epochs=many"], r"policy\.epochs='many': expected a whole number"),
    "out of range": (["sft.lr=-1"], r"sft\.lr=-1: expected more than 0"),
    "unknown choice": (["policy.loss=kto"], r"policy\.loss=kto: expected one of sigmoid, ipo, hinge"),
    "unknown experiment": (["+experiment=nope"], r"experiment=nope: not found; conf/experiment has llama2_cdpo, "),
    "experiment without +": (["experiment=nope"], r".*'experiment'.* \+experiment=nope$"),
    "unknown file of a group": (["dataset=nope"], r"dataset=nope: not found; conf/dataset has closed_form, "),
    "a number for a group": (["dataset=3"], r".*a group is chosen by the name of its file"),
    "group gone": (["~policy"], r"policy: missing; "),
    "key gone": (["~policy.beta"], r"policy\.beta: missing; "),
    "no such group to take away": (["~nope"], r".*'nope'"),
    "not an override": (["policy.beta"], r"policy\.beta: not a key and a value"),
    "brackets": (["stages=[sft"], r"stages=\[sft: not a key and a value"),
    "a list without --multirun": (["policy.beta=0.1,0.2"], r".*'policy\.beta=0\.1,0\.2'.* --multirun"),
    "interpolation": (["policy.beta=${nope}"], r"policy\.beta: .*nope"),
    "config folder": (["--config-dir", "nope"], r".*nope' not found"),
    "config name": (["--config-name", "nope"], r"config=nope: not found"),
}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_key_and_nothing_is_written(knock: Knock, tmp_path: Path, name: str) -> None:
    arguments, message = MISTAKES[name]
    status, screen, errors = knock(*arguments)
    assert status == 2
    assert re.fullmatch(rf"error: {message}.*\n", errors), errors
    assert screen == ""
    assert list(tmp_path.iterdir()) == []


def test_an_argument_that_is_none_of_hydras_exits_2_as_well(knock: Knock) -> None:
    status, _, errors = knock("--nope")
    assert status == 2
    assert errors.splitlines()[-1].endswith("error: unrecognized arguments: --nope")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [closed_form, _self_]\nprompts: [", r"error: .*parsing.*mine\.yaml.*"),
        ("defaults: [nope, _self_]\n", r"error: dataset=nope: not found \(named in conf/dataset/mine\.yaml\).*"),
        (
            "kind: closed_form\nname: mine\nprompts: 8\n",
            r"error: dataset\.correlation: missing; .*begin your file with `defaults:`.*",
        ),
        ("defaults: [closed_form, _self_]\npromts: 8\n", r"error: dataset\.promts: no such key; did you mean dataset\.prompts\?.*"),
    ],
)
def test_a_mistake_in_a_file_of_ones_own_is_named(knock: Knock, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text(text)
    status, _, errors = knock("--config-dir", str(tmp_path), "dataset=mine")
    assert status == 2
    assert re.match(message, errors), errors
    assert errors.count("\n") == 1


def test_the_configuration_can_be_shown_without_running(knock: Knock, tmp_path: Path) -> None:
    status, screen, _ = knock("--cfg", "job", "policy.beta=0.25")
    assert status == 0
    assert "beta: 0.25" in screen
    assert list(tmp_path.iterdir()) == []


def test_the_check_trains_nothing_and_writes_nothing(knock: Knock, tmp_path: Path) -> None:
    status, screen, errors = knock("mode=check", *TINY)
    assert (status, errors, list(tmp_path.iterdir())) == (0, "", [])
    assert screen.splitlines()[-1] == "nothing was trained (mode=check)"


def test_a_run_prints_its_own_lines_and_nothing_else(knock: Knock, tmp_path: Path) -> None:
    """Also where no policy can meet the limit: that is a result, not an error."""
    status, screen, errors = knock(*TINY, "run_dir=here", "artifacts_dir=store", "constraint.c_limit=-9")
    assert (status, errors) == (0, "")
    assert "no policy can meet the limit" in screen
    assert not re.search(r"deepspeed|accelerator|Warning|shards|it/s|GPU", screen, re.IGNORECASE), screen
    table = [line for line in screen.splitlines() if line.startswith(" ")]
    assert any(re.match(r" C-DPO +-?\d+\.\d\d ± \d+\.\d\d +-?\d", line) for line in table), "a cell was broken into two lines"
    assert re.fullmatch(r"here   \(\d+ s\)", screen.splitlines()[-1])


@pytest.mark.slow
def test_a_sweep_says_at_once_which_job_was_refused_and_does_the_others(knock: Knock, tmp_path: Path) -> None:
    places = ["run_dir=runs/${hydra:job.num}", "artifacts_dir=store", "hydra.sweep.dir=sweep"]
    status, screen, errors = knock("-m", *TINY, *places, "policy.beta=-1,0.5", "stages=[sft]")
    assert (status, errors) == (2, "error: job 0 (policy.beta=-1): policy.beta=-1: expected more than 0\n")
    assert [path.parent.name for path in (tmp_path / "runs").glob("*/metrics.json")] == ["1"]
    assert "1 of 2 jobs done" in screen
    assert "beta 0.5" in (tmp_path / "sweep" / "logs" / "1.txt").read_text(encoding="utf-8")


def test_a_full_disk_is_the_users_to_mend(knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    status, _, errors = knock(*TINY, "run_dir=here", "artifacts_dir=store")
    assert status == 2
    assert re.fullmatch(r"error: here/config\.yaml: cannot be written \(No space left on device\); free some space.*\n", errors)


def test_our_own_fault_keeps_its_traceback(knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr("cdpo_lightning.launch.check", broken)
    with pytest.raises(ValueError, match="a fault of ours"):
        knock("mode=check", *TINY)


def test_an_interrupt_exits_130_and_says_how_to_go_on(knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cdpo_lightning.pipeline.run.evaluate_by_samples", interrupted)
    status, _, errors = knock(*TINY, "run_dir=here", "artifacts_dir=store")
    assert status == 130
    assert errors == "interrupted: the same command with resume=true goes on from the last checkpoint\n"


def test_a_typing_error_is_answered_before_torch_is_imported(tmp_path: Path) -> None:
    """In a process of its own: the error line, the exit status and no heavy import."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), "sft.lr=-1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    text_shown = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert (result.returncode, text_shown) == (2, ["error: sft.lr=-1: expected more than 0"])
    assert not re.search(r"\| +(torch|lightning|transformers)$", result.stderr, re.MULTILINE)


@pytest.mark.slow
def test_a_whole_run_in_a_process_of_its_own_is_silent_on_standard_error(tmp_path: Path) -> None:
    places = ["run_dir=here", "artifacts_dir=store"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DS_", "PYTHONWARN"))}
    result = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *TINY, *places],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "real_accelerator" not in result.stdout
    assert "WARNING" not in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "store"]


@pytest.mark.slow
def test_a_folder_is_judged_from_the_command_line(knock: Knock, tmp_path: Path) -> None:
    """Nothing is trained twice: the score models and SFT come from the store of the first run."""
    assert knock(*TINY, "run_dir=first")[0] == 0
    status, screen, text_shown = knock(*TINY, "run_dir=second", "mode=evaluate", "policy=first/export/cdpo")
    assert (status, text_shown) == (0, "")
    assert re.search(r"^ *policy +\S+ ± ", screen, re.MULTILINE), screen
    assert (tmp_path / "second" / "samples.jsonl").exists()
    assert knock(*TINY, "run_dir=third", "mode=evaluate")[0] == 2
