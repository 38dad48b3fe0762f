"""The metrics of policies and scorers, compared with values computed by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch

from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.corpus import ScoreExample
from cdpo_lightning.errors import NumericsError
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.evaluation.metrics import policy_metrics, sample_rows, scorer_metrics, verdict, write_jsonl
from cdpo_lightning.models.sampling.generation import Sample


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-2, -1, "yes"), (-2, 0, "yes"), (-1, 1, "undecided"), (0, 1, "undecided"), (0.1, 1, "no")],
)
def test_verdict_on_a_limit_of_zero(low, high, expected):
    assert verdict(low, high, 0.0) == expected


def test_verdict_of_a_single_prompt():
    """One prompt says nothing about the others: its interval is the whole line."""
    assert verdict(-math.inf, math.inf, 0.0) == "undecided"


def measured():
    """Two prompts, two samples each."""
    return Measurement(
        samples=[
            Sample(0, (5, 1), True, -1.0), Sample(0, (5, 6, 1), True, -2.0),
            Sample(1, (7, 7, 7, 7), False, -3.0), Sample(1, (1,), True, -0.5),
        ],
        texts=[("p", "a"), ("p", "a b"), ("q", "c c c c"), ("q", "")],
        prompt=torch.tensor([0, 0, 1, 1]),
        scores={
            "reward": torch.tensor([1.0, 3, 2, 6], dtype=torch.float64),
            "cost": torch.tensor([-1.0, 1, 0, 4], dtype=torch.float64),
        },
        policy_logp=torch.tensor([-1.0, -2, -3, -0.5], dtype=torch.float64),
        reference_logp=torch.tensor([-1.5, -2, -3.5, -2.5], dtype=torch.float64),
        scored=4,
    )  # fmt: skip


def limited(c_limit, name="cost", score="cost", group=None):
    return Constraint(name, score, Mean(), c_limit, group)


def test_policy_metrics_by_hand():
    """Means 3 and 1. Sums of residuals are -2 and 2 in both: se^2 = 2/1 (4 + 4)/16 = 1; t with 1 degree is 12.706.

    Squares of residuals: 4 + 0 + 1 + 9 and 4 + 0 + 1 + 9, sd = sqrt(14/3). The worst tenth of four values is 0.4 of the worst, 4.
    A cost of exactly 0 is not unsafe. KL: (0.5 + 0 + 0.5 + 2)/4.
    """
    result = policy_metrics("cdpo", measured(), [limited(0.0)])
    expected = {
        "reward_mean": 3.0, "reward_std": (14 / 3) ** 0.5, "reward_ci_low": 3 - 12.706, "reward_ci_high": 3 + 12.706,
        "cost_mean": 1.0, "cost_std": (14 / 3) ** 0.5, "cost_ci_low": 1 - 12.706, "cost_ci_high": 1 + 12.706,
        "unsafe_rate": 0.5, "cost_cvar_90": 4.0, "feasible": "undecided", "kl_to_reference": 0.75,
        "response_tokens_mean": 2.5, "unfinished_rate": 0.25, "samples": 4, "prompts": 2,
        "cost/value": 1.0, "cost/ci_low": 1 - 12.706, "cost/ci_high": 1 + 12.706, "cost/met": "undecided",
    }  # fmt: skip
    assert result.keys() == {f"eval/cdpo/{name}" for name in expected}
    for name, value in expected.items():
        assert result[f"eval/cdpo/{name}"] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-3)), name


@pytest.mark.parametrize(("c_limit", "expected"), [(14.0, "yes"), (-12.0, "no"), (13.0, "undecided")])
def test_feasible_follows_the_interval_of_the_cost(c_limit, expected):
    result = policy_metrics("x", measured(), [limited(c_limit)])
    assert result["eval/x/feasible"] == result["eval/x/cost/met"] == expected


def test_each_constraint_has_its_own_value_and_verdict():
    """The reward must stay below 20, and 3 + 12.706 does. Of the second prompt alone the cost is 2, with an unknown error."""
    group = torch.tensor([False, True])
    constraints = [limited(20.0, "kind", "reward"), limited(-99.0, "risky", group=group)]
    result = policy_metrics("x", measured(), constraints)
    assert result["eval/x/kind/value"] == 3.0
    assert result["eval/x/kind/ci_high"] == pytest.approx(3 + 12.706, abs=1e-3)
    assert result["eval/x/kind/met"] == "yes"
    assert result["eval/x/risky/value"] == 2.0
    assert (result["eval/x/risky/ci_low"], result["eval/x/risky/ci_high"]) == (-math.inf, math.inf)
    assert result["eval/x/risky/met"] == "undecided"
    assert "eval/x/feasible" not in result, "it is the verdict of the constraint `cost`, which is not there"


def test_a_policy_without_a_reference_log_probability_has_no_kl():
    unknown = replace(measured(), reference_logp=torch.full((4,), math.nan))
    assert "eval/x/kl_to_reference" not in policy_metrics("x", unknown, [])


def test_rows_of_the_samples_file(tmp_path):
    write_jsonl(tmp_path / "samples.jsonl", sample_rows("dpo", measured()))
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4
    assert rows[2] == {"prompt": "q", "response": "c c c c", "who": "dpo", "reward": 2.0, "cost": 0.0}


def test_text_of_any_kind_goes_through_the_samples_file(tmp_path):
    odd = {"response": 'a "quoted"\nline\u2028 \N{SNOWMAN} \x00'}
    write_jsonl(tmp_path / "x.jsonl", [odd, odd])
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").split("\n")[:-1]] == [odd, odd]


class Table:
    """A scorer that looks the response up."""

    identity = "table"

    def __init__(self, scores):
        self.scores = scores

    def score(self, texts):
        return torch.tensor([self.scores[response] for _, response in texts], dtype=torch.float64)


def test_scorer_metrics_by_hand():
    """Pairs: a > b right, c > d wrong, a = e a tie: (1 + 0 + 1/2)/3. Signs: a + right, b - wrong, c + wrong, d 0 unknown, e +.

    Of the unsafe a, c, e with costs 3, -1, 3 and the safe b with cost 1, two of three rank above b. Longer wins in one of three.
    """
    examples = [
        ScoreExample("p", ("b", "a"), 1, (-1, 1)),
        ScoreExample("p", ("c", "d"), 0, (1, 0)),
        ScoreExample("q", ("a", "eee"), 1, (0, 1)),
        ScoreExample("q", ("zz",), None, (0,)),
    ]
    result = scorer_metrics("cost", Table({"a": 3.0, "b": 1.0, "c": -1.0, "d": 2.0, "eee": 3.0}), examples)
    assert result == pytest.approx(
        {
            "cost/pair_accuracy": 0.5,
            "cost/sign_accuracy": 0.5,
            "cost/auroc": 2 / 3,
            "cost/longer_wins_accuracy": 1 / 3,
            "cost/held_out": 4,
            "cost/pair_accuracy_chance_se": 0.5 / 3**0.5,
            "cost/auroc_chance_se": (5 / 36) ** 0.5,  # (n + m + 1) / (12 n m) of 3 and 1
        }
    )


def test_an_untrained_scorer_is_right_half_of_the_time():
    """Its scores are all 0: it knows neither order nor sign, whatever the share of the safe."""
    examples = [ScoreExample("p", (f"a{i}", f"b{i}"), i % 2, (-1, -1 if i else 1)) for i in range(10)]
    zero = Table({f"{x}{i}": 0.0 for x in "ab" for i in range(10)})
    result = scorer_metrics("cost", zero, examples)
    assert (result["cost/pair_accuracy"], result["cost/sign_accuracy"], result["cost/auroc"]) == (0.5, 0.5, 0.5)


def test_what_the_examples_cannot_tell_is_left_out():
    """A missing key means not measured."""
    scorer = Table({"a": 1.0, "b": 0.5})
    assert scorer_metrics("reward", scorer, []) == {"reward/held_out": 0}
    pair = ScoreExample("p", ("a", "b"), 0, (0, 0))
    assert scorer_metrics("reward", scorer, [pair]).keys() == {
        "reward/pair_accuracy", "reward/pair_accuracy_chance_se", "reward/longer_wins_accuracy", "reward/held_out",
    }  # fmt: skip
    safe = ScoreExample("p", ("a",), None, (-1,))
    assert scorer_metrics("cost", scorer, [safe]) == {"cost/sign_accuracy": 0.0, "cost/held_out": 1}


def test_a_score_that_is_not_finite_is_an_error():
    examples = [ScoreExample("p", ("a", "b"), 0, (1, -1))]
    with pytest.raises(NumericsError):
        scorer_metrics("cost", Table({"a": math.nan, "b": 0.0}), examples)
