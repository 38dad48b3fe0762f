"""`mode=evaluate policy=FOLDER`: a model in a folder is evaluated like one trained in the run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo_lightning.config import RunConfig
from cdpo_lightning.errors import CDPOError
from cdpo_lightning.pipeline.run import evaluate, run
from cdpo_lightning.sweep.objective import objective

Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def trained(configure: Configure) -> tuple[RunConfig, dict]:
    config = configure("method.baselines=[dpo]", "policy.epochs=1", "stages=[sft,reward,cost,policy,evaluate]")
    return config, run(config)


def test_a_policy_from_a_folder_gets_the_metrics_of_the_run_that_trained_it(
    configure: Configure, trained: tuple[RunConfig, dict]
) -> None:
    """Same prompts, scorers, reference and random numbers: the same metrics to 1e-5; and nothing is trained."""
    before, metrics = trained
    config = configure("mode=evaluate", f"policy={before.run_dir}/export/cdpo", "stages=[sft,reward,cost,policy,evaluate,report]")
    result = evaluate(config)
    for name in ("reward_mean", "cost_mean", "cost_ci_low", "unsafe_rate", "kl_to_reference", "response_tokens_mean"):
        assert result[f"eval/policy/{name}"] == pytest.approx(metrics[f"eval/cdpo/{name}"], abs=1e-5), name
    for name in ("minus_sft/reward", "minus_sft/cost_ci_low", "win_rate_vs_sft", "category/risky/unsafe_rate"):
        assert result[f"eval/policy/{name}"] == pytest.approx(metrics[f"eval/cdpo/{name}"], abs=1e-5), name
    assert result["eval/policy/feasible"] == metrics["eval/cdpo/feasible"]
    folder = Path(config.run_dir)
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == result
    assert result["run/policy"] == f"{before.run_dir}/export/cdpo"
    assert "reward wins against SFT" in (folder / "report" / "table.md").read_text(encoding="utf-8")
    assert (folder / "report" / "index.html").exists()
    assert not (folder / "export").exists()
    assert not any(key.startswith("exact/") for key in result)
    assert objective(config, result) is None


def test_two_policies_are_compared_with_each_other(configure: Configure, trained: tuple[RunConfig, dict]) -> None:
    """Truth: the difference of their means."""
    folder = f"{trained[0].run_dir}/export"
    result = evaluate(configure("mode=evaluate", f"policy={folder}/dpo+{folder}/cdpo"))
    difference = result["eval/policy_2/cost_mean"] - result["eval/policy_1/cost_mean"]
    assert result["eval/policy_2/minus_policy_1/cost"] == pytest.approx(difference, abs=1e-9)
    assert result["eval/policy_2/minus_policy_1/cost_ci_low"] <= difference <= result["eval/policy_2/minus_policy_1/cost_ci_high"]
    assert "eval/policy_1/minus_policy_1/cost" not in result


def test_a_run_compares_every_policy_with_sft_and_dpo(trained: tuple[RunConfig, dict]) -> None:
    _, metrics = trained
    difference = metrics["eval/cdpo/cost_mean"] - metrics["eval/dpo/cost_mean"]
    assert metrics["eval/cdpo/minus_dpo/cost"] == pytest.approx(difference, abs=1e-9)
    assert metrics["eval/cdpo/minus_sft/reward_ci_low"] <= metrics["eval/cdpo/minus_sft/reward"]
    counted = [metrics[f"eval/cdpo/category/{name}/prompts"] for name in ("risky", "benign")]
    assert sum(counted) == metrics["eval/cdpo/prompts"]


def test_a_run_that_names_the_files_evaluates_over_refusal_and_truthfulqa(configure: Configure, tmp_path: Path) -> None:
    requested = [{"prompt": "how do i fix a bike?", "type": "t", "label": label} for label in ("safe", "unsafe")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requested), encoding="utf-8")
    options = {"gladly, ask an expert": 1, "well,": 0}
    (tmp_path / "mc.json").write_text(
        json.dumps([{"question": "how?", "mc1_targets": options, "mc2_targets": options}]), encoding="utf-8"
    )
    files = [f"evaluation.refusal_prompts={tmp_path}/x.jsonl", f"evaluation.truthfulqa={tmp_path}/mc.json"]
    config = configure("dataset.scores=oracle", "stages=[sft,evaluate]", *files)
    result = run(config)
    assert result["eval/sft/refusal/safe_rate"] == 0.0 == result["eval/reference/refusal/unsafe_rate"]
    assert result["eval/sft/truthfulqa/mc1"] in (0.0, 1.0)
    assert 0 < result["eval/sft/truthfulqa/mc2"] < 1
    rows = [json.loads(line) for line in (Path(config.run_dir) / "refusals.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["who"], row["label"], row["refused"]) for row in rows} == {
        (who, label, False) for who in ("reference", "sft") for label in ("safe", "unsafe")
    }


# Refusals


def refused(config: Callable[[], RunConfig]) -> str:
    with pytest.raises(CDPOError) as caught:
        evaluate(config())
    return str(caught.value)


def test_a_mode_and_a_policy_that_do_not_go_together_are_refused(configuration: Callable[..., RunConfig]) -> None:
    assert re.search(r"mode=evaluate: .*policy=FOLDER", refused(lambda: configuration("mode=evaluate")))
    assert re.search(r"policy=x: .*policy\.KEY=VALUE.*mode=evaluate", refused(lambda: configuration("policy=x")))
    for empty in ("policy=''", "policy=a+"):
        assert "a folder or a hub name" in refused(lambda given=empty: configuration("mode=evaluate", given))


def test_a_policy_without_a_model_needs_score_models(configuration: Callable[..., RunConfig]) -> None:
    """Trained here, they would start from the policy itself, and so differ from policy to policy."""
    message = refused(lambda: configuration("mode=evaluate", "policy=x", "dataset=pku_saferlhf", "model=tiny_llama"))
    assert message.startswith("reward.path")
    assert "model.path" in message


def test_a_folder_that_is_no_model_is_refused(configure: Configure, tmp_path: Path) -> None:
    assert "no such folder" in refused(lambda: configure("mode=evaluate", f"policy={tmp_path}/gone", "dataset.scores=oracle"))
