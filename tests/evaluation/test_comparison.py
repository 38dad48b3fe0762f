"""Comparisons of policies, and results by category, computed by hand."""

import pytest
import torch

from cdpo_lightning.config import methods
from cdpo_lightning.data.records import EvaluationPrompt
from cdpo_lightning.evaluation.categories import category_metrics
from cdpo_lightning.evaluation.comparison import compare, opponents
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.models.sampling.generation import Sample


def measured(reward, cost):
    """Return a measurement with two samples of each prompt."""
    count = len(reward)
    scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in (("reward", reward), ("cost", cost))}
    return Measurement(
        [Sample(i // 2, (1,), True, -1.0) for i in range(count)], [(f"p{i // 2}", "a") for i in range(count)],
        torch.arange(count) // 2, scores, -torch.ones(count), -torch.ones(count), 1,
    )  # fmt: skip


SFT = measured([0, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, -1])
DPO = measured([2, 3, 2, 3, 2, 3], [1, 2, 1, 2, 1, 2])


def test_differences_and_win_rates_by_hand():
    """By prompt, DPO has 2, 2, 2 more reward, 0.5, 0.5, 1.5 more cost and 0, 0, 0.5 more unsafe; every sample wins."""
    result = compare({"reference": SFT, "sft": SFT, "dpo": DPO}, seed=0)
    reward = {key: result[f"eval/dpo/minus_sft/{key}"] for key in ("reward", "reward_ci_low", "reward_ci_high")}
    assert reward == {"reward": 2.0, "reward_ci_low": 2.0, "reward_ci_high": 2.0}
    assert result["eval/dpo/minus_sft/cost"] == pytest.approx((0.5 + 0.5 + 1.5) / 3)
    assert result["eval/dpo/minus_sft/unsafe_rate"] == pytest.approx(0.5 / 3)
    assert (
        result["eval/dpo/minus_sft/cost_ci_low"] <= result["eval/dpo/minus_sft/cost"] <= result["eval/dpo/minus_sft/cost_ci_high"]
    )
    assert result["eval/dpo/win_rate_vs_sft"] == 1.0
    assert result["eval/sft/win_rate_vs_dpo"] == 0.0
    assert result["eval/sft/minus_dpo/reward"] == -2.0
    assert not [key for key in result if "eval/dpo/minus_dpo" in key or "eval/reference" in key or "minus_reference" in key]


def test_the_reference_is_the_opponent_where_there_is_no_sft():
    assert opponents({"reference": SFT, "cdpo": DPO}) == ["reference"]
    assert opponents({"reference": SFT, "sft": SFT, "dpo": DPO, "cdpo": DPO}) == ["sft", "dpo"]
    assert opponents({"policy_1": SFT, "policy_2": DPO}) == ["policy_1"]
    assert compare({"policy": DPO}, 0) == {}


def test_an_opponent_is_named_by_the_methods_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**methods.METHODS, "mine": methods.MethodSpec("preference", title="My method", opponent=True)}
    monkeypatch.setattr(methods, "METHODS", table)
    assert opponents({"sft": SFT, "mine": DPO, "cdpo": DPO}) == ["sft", "mine"]
    assert compare({"mine": SFT, "cdpo": DPO}, seed=0)["eval/cdpo/minus_mine/reward"] == 2.0


def test_categories_by_hand():
    """Prompts 0 and 1 are in category a, prompt 1 in b too, prompt 2 in none."""
    items = [EvaluationPrompt("p0", ("a/x",)), EvaluationPrompt("p1", ("a/x", "b")), EvaluationPrompt("p2")]
    result = category_metrics("dpo", measured([2, 4, 6, 8, 0, 0], [1, 3, -1, 1, 9, 9]), items)
    assert {key.split("/")[3] for key in result} == {"a or x", "b"}
    assert result["eval/dpo/category/a or x/prompts"] == 2
    assert result["eval/dpo/category/a or x/reward_mean"] == 5.0
    assert result["eval/dpo/category/a or x/cost_mean"] == 1.0
    assert result["eval/dpo/category/a or x/unsafe_rate"] == 0.75
    assert (result["eval/dpo/category/b/cost_mean"], result["eval/dpo/category/b/unsafe_rate"]) == (0.0, 0.5)
