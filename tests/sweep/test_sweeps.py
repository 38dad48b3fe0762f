"""The files of `sweeps/` and the Hydra plugins: every configuration composes, and a sweep runs the jobs of its overrides."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cdpo_lightning.config import parse
from hydra_plugins.cdpo.launcher import _quoted
from hydra_plugins.cdpo.search import best_trial_line, distribution, open_study, tell

ROOT = Path(__file__).resolve().parent.parent.parent
SWEEPS = sorted(path.stem for path in (ROOT / "sweeps" / "sweep").glob("*.yaml"))
CLUSTERS = {
    "slurm": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "ray": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", ["run_dir=here", *overrides], return_hydra_config=True)


def task(config: DictConfig) -> DictConfig:
    return OmegaConf.create({key: value for key, value in OmegaConf.to_container(config).items() if key != "hydra"})


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.slow
def test_every_job_of_every_sweep_has_a_valid_configuration(name: str) -> None:
    config = composed(f"+sweep={name}")
    assert config.hydra.mode.name == "MULTIRUN"
    assert config.hydra.launcher._target_.startswith("hydra_plugins.cdpo.")
    params = {key: str(value).split(",") for key, value in config.hydra.sweeper.params.items()}
    jobs = [[f"{key}={value}" for key, value in zip(params, values, strict=True)] for values in itertools.product(*params.values())]
    identities = {parse(task(composed(f"+sweep={name}", *job))).identity() for job in jobs}
    assert len(identities) == len(jobs) > 1


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_begins_with_the_command_that_runs_it(name: str) -> None:
    first, second, *_ = (ROOT / "sweeps" / "sweep" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert (first, second) == ("# @package _global_", f"# python run.py +sweep={name}")


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_launchers_for_clusters_compose_without_their_packages(name: str) -> None:
    config = composed(f"hydra/launcher={name}")
    assert config.hydra.launcher._target_ == CLUSTERS[name]
    assert parse(task(config)).name == "closed_form"


def test_a_value_is_quoted_as_hydra_reads_it() -> None:
    for text in ("runs/a-1", "a b", "it's", "beta=0.1, c", "C:\\x", "a\\", "\\'b", "[1]", "é"):
        [override] = OverridesParser.create().parse_overrides([f"key={_quoted(text)}"])
        assert str(override.value()) == text, text


RUN = ROOT / "run.py"
STUB = Path(__file__).parent / "stub_run.py"


def sweep(folder: Path, *arguments: str, program: Path = RUN) -> subprocess.CompletedProcess[str]:
    """Run `program` in a folder; with STUB, the jobs are composed and started as usual, but train nothing."""
    command = [sys.executable, str(program), *arguments]
    return subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_jobs_that_would_share_a_folder_are_refused_before_any_is_started(tmp_path: Path) -> None:
    done = sweep(tmp_path, "-m", "run_dir=one", "policy.beta=0.1,0.2", "hydra.sweep.dir=sweep")
    assert done.returncode == 2
    assert re.fullmatch(r"error: run_dir=one: job 0 .* and job 1 .* would both write there; leave run_dir out, .*\n", done.stderr)
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
def test_jobs_that_are_all_refused_end_the_sweep_with_2(tmp_path: Path) -> None:
    done = sweep(tmp_path, "-m", "policy.beta=-2,-1", "hydra.sweep.dir=sweep")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: job {n} (policy.beta=-{2 - n}): policy.beta=-{2 - n}: expected more than 0" for n in (0, 1)
    ]
    assert "to run only these again: python run.py -m policy.beta=-2,-1 hydra.sweep.dir=sweep" in done.stdout
    assert [job["state"] for job in json.loads((tmp_path / "sweep" / "jobs.json").read_text())["jobs"]] == ["failed"] * 2


@pytest.mark.slow
def test_zero_parallel_jobs_are_refused(tmp_path: Path) -> None:
    done = sweep(tmp_path, "-m", "policy.beta=0.1,0.2", "hydra.launcher.jobs=0")
    assert (done.returncode, done.stderr) == (2, "error: hydra.launcher.jobs=0: expected a whole number, at least 1\n")


def agent_command(values: dict[str, object]) -> list[str]:
    """What `wandb agent` would start: the sweep file's `command`, filled in as its documentation says."""
    file = yaml.safe_load((ROOT / "sweeps" / "wandb_beta_c_limit.yaml").read_text(encoding="utf-8"))
    filled = {"${env}": ["env"], "${program}": [file["program"]], "${args_no_hyphens}": [f"{k}={v}" for k, v in values.items()]}
    return [part for word in file["command"] for part in filled.get(word, [word])]


@pytest.mark.slow
def test_the_command_of_the_wandb_agent_runs(tmp_path: Path) -> None:
    file = yaml.safe_load((ROOT / "sweeps" / "wandb_beta_c_limit.yaml").read_text(encoding="utf-8"))
    assert (file["program"], file["method"]) == ("run.py", "grid")
    same = yaml.safe_load((ROOT / "sweeps" / "sweep" / "beta_c_limit.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"][
        "params"
    ]
    assert {key: ",".join(map(str, value["values"])) for key, value in file["parameters"].items()} == same
    command = agent_command({key: value["values"][0] for key, value in file["parameters"].items()})
    assert command[:3] == ["env", "python", "run.py"]
    command[1:3] = [sys.executable, str(ROOT / "run.py")]
    done = subprocess.run([*command, "mode=check"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
                          env=dict(os.environ))  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "E[cost] <= -0.7, beta 0.3" in done.stdout


def test_the_search_space_is_that_of_the_overrides() -> None:
    pytest.importorskip("optuna", reason="pip install -e '.[search]'")
    texts = ["a=tag(log, interval(0.1, 1))", "b=interval(0, 2)", "c=x,y", "d=range(1, 5)", "e=choice(1, 2)"]
    result = [distribution(override) for override in OverridesParser.create().parse_overrides(texts)]
    shown = [
        (type(one).__name__, getattr(one, "low", None), getattr(one, "high", None), getattr(one, "log", None)) for one in result
    ]
    assert shown[:2] == [("FloatDistribution", 0.1, 1.0, True), ("FloatDistribution", 0.0, 2.0, False)]
    assert result[2].choices == ("x", "y")
    assert (shown[3][1], shown[3][2]) == (1, 4)
    assert result[4].choices == ("1", "2")


def test_the_search_finds_the_best_feasible_setting_and_resumes_after_a_kill(tmp_path: Path) -> None:
    """Reward x, cost x - 1 with limit 0: the best feasible x is 1, while the reward alone asks for 3."""
    optuna = pytest.importorskip("optuna", reason="pip install -e '.[search]'")
    from hydra.core.utils import JobReturn

    space = {"x": optuna.distributions.FloatDistribution(0, 3)}
    for number in range(24):
        study = open_study(tmp_path / "search.log", 0)  # as if the search were killed after every trial
        study.ask(space)
        [trial] = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        x, folder = trial.params["x"], tmp_path / str(number)
        folder.mkdir()
        metrics = {"run/method": "cdpo", "dual/c_limit": 0.0, "eval/cdpo/reward_mean": x, "eval/cdpo/cost_mean": x - 1}
        if number != 3:  # a failed job has no metrics
            (folder / "metrics.json").write_text(json.dumps(metrics))
        tell(study, trial, JobReturn(working_dir=str(folder)))
    text = best_trial_line(study)
    best = float(re.search(r"x=([\d.]+)", text)[1])
    assert 0.7 < best <= 1
    assert "that met the limit" in text


TINY = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=8", "dataset.demonstrations_per_prompt=8",
    "sft.epochs=1", "reward.epochs=1", "cost.epochs=1", "policy.epochs=1", "policy.refresh=2",
    "constraint.samples_per_prompt=4", "evaluation.samples_per_prompt=4", "method.baselines=[]", "trainer.num_threads=1",
    "stages=[sft,reward,cost,policy,evaluate]", "artifacts_dir=store",
]  # fmt: skip


def state(folder: Path) -> dict[Path, int]:
    """All files of a job, with the time of their last change."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_longer_sweep_leaves_finished_jobs_alone_and_adds_new_ones(tmp_path: Path) -> None:
    options = ["-m", "policy.beta=0.3,0.5", "hydra.sweep.dir=sweep", "hydra.launcher.jobs=2"]
    done = sweep(tmp_path, *options, program=STUB)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert (tmp_path / "sweep" / "report" / "index.html").is_file()
    before = [state(tmp_path / "sweep" / str(n)) for n in (0, 1)]
    assert all(before)
    longer = [text.replace("0.3,0.5", "0.2,0.3,0.5") for text in options]
    done = sweep(tmp_path, *longer, program=STUB)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 of 3 jobs done, 2 of them before")
    assert before == [state(tmp_path / "sweep" / str(n)) for n in (0, 1)]
    assert yaml.safe_load((tmp_path / "sweep" / "2" / "config.yaml").read_text())["policy"]["beta"] == 0.2


@pytest.mark.slow
def test_two_jobs_of_two_deepspeed_ranks_share_the_store_and_nothing_else(tmp_path: Path) -> None:
    """Real runs, four processes at once, from an empty store: no port, log or W&B run is shared by mistake."""
    options = ["-m", *TINY, "trainer=deepspeed_cpu", "policy.beta=0.3,0.5", "logger=wandb"]
    done = sweep(tmp_path, *options, "hydra.sweep.dir=sweep", "hydra.launcher.jobs=2")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    metrics = [json.loads((tmp_path / "sweep" / str(n) / "metrics.json").read_text()) for n in (0, 1)]
    for kind in ("reward", "cost", "reference"):
        counts = sorted(m[f"store/{kind}_forwards"] for m in metrics)
        assert counts[0] < counts[1] or sum(counts) == counts[1], kind
        artifacts = len(list((tmp_path / "store").glob(f"{kind}_*/*/meta.json")))
        assert sum(counts) > 0 < artifacts
    for kind in ("sft", "reward", "cost"):
        assert len(list((tmp_path / "store" / kind).iterdir())) == 1, "trained once for both jobs"
    assert len(list(tmp_path.glob("sweep/*/wandb/offline-run-*"))) == 2
    for number, beta in enumerate(("0.3", "0.5")):
        text = (tmp_path / "sweep" / "logs" / f"{number}.txt").read_text(encoding="utf-8")
        assert text.count(f"beta {beta}, seed 0") == 1, text
        assert re.search(rf"sweep/{number}   \(\d+ s\)\n$", text), text
        assert metrics[number]["dual/rounds"] == 1


def readme_commands() -> list[str]:
    """The commands of the README's section on sweeps."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Sweeps\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    return [line.partition("   #")[0].strip() for block in blocks for line in block.splitlines() if line.startswith("python ")]


ONE_JOB = {
    "+sweep=beta_c_limit": ["policy.beta=0.3", "constraint.c_limit=-0.5"],
    "+sweep=lambda_updates": ["constraint.update=newton", "constraint.lambda_lr=0.5"],
    "+sweep=methods": ["method=cdpo", "policy.beta=0.3"],
}


def test_the_readme_has_commands() -> None:
    assert len(readme_commands()) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_runs(command: str, tmp_path: Path, make_sweep: Callable[[Path], None]) -> None:
    """As written, but with one value of each list, stub jobs, and without a cluster or a server."""
    program, *words = shlex.split(command)[1:]
    if program == "-m":
        make_sweep(tmp_path / "multirun" / "closed_form" / "beta_c_limit")
        make_sweep(tmp_path / "multirun" / "closed_form" / "methods")
        own = dict(os.environ)
        command_line = [sys.executable, "-m", *words]
        done = subprocess.run(command_line, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=600, check=False)
    elif program == "sweeps/dashboard.py":
        pytest.skip("tests/sweep/test_online.py runs it against a stand-in of the server")
    else:
        words = [re.sub(r"^([\w.]+=[-\w.]+),[^()]*$", r"\1", word) for word in words]
        if any(word in ("hydra/launcher=slurm", "hydra/launcher=ray") for word in words):
            words = [*words[1:], "--cfg", "hydra"]  # without -m: Hydra either prints its configuration or runs
        one = [value for word in words for value in ONE_JOB.get(word, [])]
        done = sweep(tmp_path, *words, *one, program=STUB)
    assert done.returncode == 0, done.stdout + done.stderr
