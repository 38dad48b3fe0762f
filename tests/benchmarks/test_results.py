"""What the benchmarks of methods make of the metrics of a run, by hand."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """A module of the folder of benchmarks, by name; the programs import one another."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = {path.stem for path in FOLDER.glob("*.py")}
    yield importlib.import_module
    for name in names & sys.modules.keys():
        del sys.modules[name]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "trl_dpo"))
def test_every_program_can_be_imported(module, name):
    assert module(name).__doc__


METRICS = {
    "dual/lambda": 1.05, "exact/lambda": 1.0, "dual/c_limit": -0.5, "run/git_commit": "abc",
    "exact/cdpo/expected_cost": -0.47, "exact/cdpo/kl_to_optimum": 0.02, "exact/cdpo/support_mass": 0.99,
    "exact/cdpo/duality_gap": 0.01, "exact/cdpo/expected_reward": 0.7, "exact/reference/kl_to_optimum": 2.0,
    "budget/cdpo/trained_tokens": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    "worse",
    [
        {},
        {"dual/lambda": 1.11},
        {"exact/cdpo/expected_cost": -0.44},
        {"exact/cdpo/kl_to_optimum": 0.031},
        {"exact/cdpo/support_mass": 0.94},
        {"exact/cdpo/duality_gap": 0.031},
    ],
    ids=lambda worse: next(iter(worse), "all five"),
)
def test_the_certificate_holds_if_all_five_bounds_do(module, worse):
    certificate = module("certificate")
    row = certificate.row(certificate.Job("cdpo", 0, 0.5, 0.5, ()), METRICS | worse)
    assert row["holds"] == (not worse)
    assert row["C_limit"] == -0.5


def test_the_certificate_has_thirty_runs_and_its_ablations(module):
    jobs = module("certificate").jobs("")
    recommended = [job for job in jobs if job.setting == "cdpo"]
    assert len(recommended) == 5 * 2 * 3
    assert len({job.name for job in jobs}) == len(jobs)
    assert module("certificate").jobs("argmax") == [job for job in jobs if job.setting == "argmax"]


def test_the_range_in_which_the_limit_binds_is_that_of_the_world(module, tmp_path):
    """With the world's true scores the lowest reachable cost takes the best response of each prompt's topic."""
    from cdpo_lightning.config import ClosedFormConfig
    from cdpo_lightning.data.world.closed_form import make_world

    overrides = ["dataset.prompts=8", "dataset.responses=16", "dataset.scores=oracle", "stages=[policy]", "seed=3"]
    overrides += ["method.baselines=[]", f"artifacts_dir={tmp_path / 'artifacts'}"]
    low, high = module("certificate").binding_range(overrides, tmp_path / "range")
    world = make_world(ClosedFormConfig(prompts=8, responses=16), seed=3)
    best = world.scores_GK["cost"].min(1).values[world.topic]
    assert low == pytest.approx(float(best.mean()))
    assert low < high < float(world.scores_GK["cost"].max())


def test_the_rows_of_methods_are_of_every_policy_but_the_reference(module):
    rows = module("methods").rows(METRICS)
    assert rows.keys() == {"cdpo"}
    assert rows["cdpo"]["E[c] - C_limit"] == pytest.approx(0.03)
    assert (rows["cdpo"]["KL to optimum"], rows["cdpo"]["trained tokens"]) == (0.02, 100)
    assert rows["cdpo"]["models"] != rows["cdpo"]["models"], "not measured: nan"


@pytest.mark.parametrize("stage", [1, 3])
def test_the_memory_estimate_grows_with_the_model(module, stage):
    estimated = module("memory").estimated
    assert estimated(16, stage) < estimated(256, stage) < estimated(512, stage)


def test_the_overrides_of_every_run_are_accepted_by_the_configuration(module, tmp_path):
    certificate, methods, memory = (module(name) for name in ("certificate", "methods", "memory"))
    folder = [f"run_dir={tmp_path / 'run'}"]
    for setting in ("cdpo", *certificate.VARIANTS):
        job = certificate.jobs(setting)[0]
        assert certificate.compose([*certificate.common(job, tmp_path), *job.overrides]).policy.beta == job.beta
    for world in methods.WORLDS:
        assert methods.compose([*methods.Job(world, 1).overrides(tmp_path), *folder]).seed == 1
    sizes = [f"model.architecture.{name}={size}" for name, size in memory.architecture(256).items()]
    for stage in (1, 3):
        config = certificate.compose([*memory.FIXED, *sizes, *folder, f"trainer.strategy=deepspeed_zero{stage}"])
        assert (config.trainer.zero, config.trainer.processes) == (stage, 2)
