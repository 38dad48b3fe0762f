"""Every choice of the configuration runs to the end and has the effect that its name promises."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo_lightning.config import RunConfig
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.pipeline.run import run

Configure = Callable[..., RunConfig]
ORACLE = "dataset.scores=oracle"


def read(config: RunConfig) -> Metrics:
    """Return metrics.json, which must be strict JSON: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"metrics.json holds {constant}")

    text = (Path(config.run_dir) / "metrics.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)


def lambdas(config: RunConfig) -> list[float]:
    """Return lambda before the first round and after every round."""
    with (Path(config.run_dir) / "history.csv").open(encoding="utf-8", newline="") as file:
        rounds = [row for row in csv.DictReader(file) if row["round"]]
    return [float(rounds[0]["dual/lambda"]), *(float(row["dual/lambda_next"]) for row in rounds)]


@pytest.mark.slow
def test_an_unreachable_limit_is_a_result_and_is_reported(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(ORACLE, "constraint.c_limit=-4")
    run(config)
    metrics = read(config)
    assert metrics["dual/alarm"] == "infeasible"
    assert metrics["exact/reachable_cost_min"] > -4
    assert "exact/lambda" not in metrics, "there is no optimum to report"
    assert re.search(r"no policy can meet the limit.*-4\.00", capsys.readouterr().out)


def test_a_loose_limit_leaves_lambda_at_zero(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(ORACLE, "constraint.c_limit=5")
    run(config)
    metrics = read(config)
    assert metrics["dual/lambda"] == 0 == metrics["exact/lambda"]
    assert metrics["dual/alarm"] == "pinned_at_zero"
    assert metrics["eval/cdpo/feasible"] == "yes"
    assert "the limit does not bind" in capsys.readouterr().out


def test_no_constraint_is_plain_dpo(configure: Configure) -> None:
    config = configure(ORACLE, "constraint=none", "method.baselines=[dpo]")
    run(config)
    metrics = read(config)
    assert "dual/c_limit" in metrics, "the evaluation compares the cost with it"
    assert not {"dual/lambda", "dual/rounds", "dual/expected_cost", "dual/alarm"} & metrics.keys(), "no dual variable"
    assert "eval/dpo/cost_mean" in metrics
    assert "eval/cdpo/cost_mean" not in metrics
    assert [path.name for path in (Path(config.run_dir) / "export").iterdir()] == ["dpo"]


def test_a_fixed_lambda_stays(configure: Configure) -> None:
    config = configure(ORACLE, "constraint=fixed", "constraint.lambda_init=0.4")
    run(config)
    metrics = read(config)
    assert set(lambdas(config)) == {0.4}
    assert metrics["dual/lambda"] == 0.4
    assert metrics["dual/alarm"] == "none"
    assert "eval/cdpo_fixed/cost_mean" in metrics


@pytest.mark.parametrize("update", ["newton", *(pytest.param(name, marks=pytest.mark.slow) for name in ("projected", "pi", "log"))])
def test_every_update_raises_lambda_while_the_limit_is_violated(configure: Configure, update: str) -> None:
    start = 0.1 if update == "log" else 0.0
    config = configure(ORACLE, f"constraint.update={update}", f"constraint.lambda_init={start}", "constraint.c_limit=-1")
    run(config)
    first, second, third = lambdas(config)
    assert first == start < second < third == read(config)["dual/lambda"]


@pytest.mark.slow
def test_one_shot_starts_near_the_optimum(configure: Configure) -> None:
    config = configure(ORACLE, "constraint=fixed", "constraint.lambda_init=one_shot", "policy.epochs=1")
    run(config)
    metrics = read(config)
    assert metrics["dual/lambda_start"] == metrics["dual/lambda"] == pytest.approx(metrics["exact/lambda"], rel=0.5)


@pytest.mark.parametrize(
    "changes",
    [
        ["policy.labels=bernoulli", "policy.loss=ipo"],
        pytest.param(["policy.labels=argmax", "policy.loss=hinge"], marks=pytest.mark.slow),
        ["policy.anchor=0.05", "policy.label_smoothing=0.1", "policy.pairs_per_row=1"],
    ],
)
def test_every_loss_and_labelling_trains_the_policy(configure: Configure, changes: list[str]) -> None:
    config = configure(ORACLE, *changes)
    run(config)
    metrics = read(config)
    assert metrics["eval/cdpo/kl_to_reference"] > 0
    assert metrics["exact/cdpo/expected_reward"] - metrics["dual/lambda"] * metrics["exact/cdpo/expected_cost"] > (
        metrics["exact/reference/expected_reward"] - metrics["dual/lambda"] * metrics["exact/reference/expected_cost"]
    ), "the Lagrangian reward did not rise"


@pytest.mark.slow
def test_the_baselines_are_evaluated_in_the_same_run(configure: Configure) -> None:
    config = configure(ORACLE, "method.baselines=[dpo,cost_only]", "policy.epochs=1")
    run(config)
    metrics = read(config)
    assert metrics["exact/cost_only/expected_cost"] < metrics["exact/dpo/expected_cost"]


@pytest.mark.slow
def test_the_literal_algorithm_of_the_paper_runs(configure: Configure) -> None:
    config = configure(ORACLE, "policy.refresh=0", "policy.labels=bernoulli", "constraint.update=projected")
    run(config)
    assert read(config)["dual/rounds"] == 2


def test_one_prompt_has_no_confidence_interval(configure: Configure) -> None:
    config = configure(ORACLE, "constraint.prompts=1", "evaluation.prompts=1", "policy.epochs=1")
    run(config)
    metrics = read(config)
    assert metrics["eval/cdpo/prompts"] == 1
    assert "eval/cdpo/cost_ci_low" not in metrics
    assert "dual/expected_cost_se" not in metrics
    assert metrics["eval/cdpo/feasible"] == "undecided"


def test_a_run_without_evaluation_and_without_policy(configure: Configure) -> None:
    config = configure(ORACLE, "stages=[sft]")
    run(config)
    metrics = read(config)
    assert "sft/loss" in metrics
    assert not any(key.startswith(("eval/", "dual/lambda")) for key in metrics)
    assert not (Path(config.run_dir) / "export").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "wandb"])
def test_a_logger_writes_into_the_folder_of_the_run(configure: Configure, kind: str) -> None:
    config = configure(ORACLE, "policy.epochs=1", f"logger={kind}")
    run(config)
    assert any((Path(config.run_dir) / kind).rglob("*"))
