"""The dual round: by hand with one constraint, and driven to the exact multipliers with three."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from cdpo_lightning.constraints.constraint import Constraint, DualState, utility
from cdpo_lightning.constraints.dual_round import Oracle, dual_metrics, dual_round
from cdpo_lightning.constraints.measures import MEASURES, Mean
from cdpo_lightning.constraints.updates import Log, Newton, Projected, ProportionalIntegral
from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths.closed_form import optimal_policy
from cdpo_lightning.maths.multipliers import solve_multipliers

COST = Constraint("cost", "cost", Mean(), 0.5)
BETA = 0.5


@dataclass(frozen=True)
class Drawn:
    """Samples with their scores."""

    scores: dict[str, Tensor]
    prompt: Tensor


def drawn(costs, prompt=(0, 0, 1, 1), **others):
    scores = {"reward": torch.zeros(len(costs)), "cost": torch.tensor(costs), **others}
    return Drawn({name: score.double() for name, score in scores.items()}, torch.tensor(prompt))


def test_a_round_by_hand():
    """Costs 1, 2 and 3, 4: mean 2.5, se^2 = 2 (2^2 + 2^2) / 4^2 = 1, variances 0.5; newton 0.1 + 0.5 0.5 2 / 0.5 = 1.1."""
    before = DualState(lam={"cost": 0.1})
    after, row = dual_round(drawn([1.0, 2.0, 3.0, 4.0]), [COST], before, Newton(0.5, 10.0, 20.0), BETA)
    assert after.lam["cost"] == pytest.approx(1.1)
    assert (after.round, after.measured["cost"], after.measured_se["cost"]) == (1, 2.5, pytest.approx(1.0))
    expected = {"lambda": 0.1, "lambda_next": pytest.approx(1.1), "measured": 2.5, "violation": 2.0, "limit": 0.5}
    assert {name: row[f"dual/cost/{name}"] for name in expected} == expected
    former = {"dual/lambda": 0.1, "dual/expected_cost": 2.5, "dual/violation": 2.0, "dual/c_limit": 0.5, "round": 1}
    assert {name: row[name] for name in former} == former


def test_without_an_update_the_round_measures_and_lambda_stays():
    after, row = dual_round(drawn([1.0, 2.0, 3.0, 4.0]), [COST], DualState(lam={"cost": 0.1}), None, BETA, lowest={"cost": 9.0})
    assert (after.lam["cost"], after.alarm["cost"], after.measured["cost"]) == (0.1, "none", 2.5)
    assert row["dual/cost/lambda_next"] == 0.1


def test_the_update_is_given_other_values_where_there_are_any():
    """The window of PPO-Lagrangian: lambda moves by the given mean 0.7, the history has the measured 2.5."""
    start = DualState(lam={"cost": 1.0})
    after, row = dual_round(drawn([1.0, 2.0, 3.0, 4.0]), [COST], start, Projected(0.1, 20.0), BETA, values={"cost": 0.7})
    assert after.lam["cost"] == pytest.approx(1.02)
    assert row["dual/cost/measured"] == 2.5


def test_an_oracle_reports_in_place_of_the_scores_and_the_curvature_is_that_of_the_scores():
    """The oracle says -1, +3 and +1, +1 (mean 1, violation 0.5); the scores' variance 0.5 divides the step."""
    oracle = Oracle(lambda phi, seed: torch.tensor([-1.0, 3.0, 1.0, 1.0]) * seed, seed=1)
    start = DualState(lam={"cost": 0.0})
    after, _ = dual_round(drawn([1.0, 2.0, 3.0, 4.0]), [COST], start, Newton(1.0, 10.0, 20.0), BETA, oracle=oracle)
    assert (after.measured["cost"], after.lam["cost"]) == (1.0, pytest.approx(0.5))


def test_a_constraint_over_a_group_counts_its_prompts_alone():
    """Prompt 1 of 2: mean 3.5 over its samples; in the utility its lambda weighs twice, elsewhere not at all."""
    grouped = replace(COST, group=torch.tensor([False, True]))
    samples, start = drawn([1.0, 2.0, 3.0, 4.0]), DualState(lam={"cost": 1.0})
    after, _ = dual_round(samples, [grouped], start, Projected(0.1, 20.0), BETA)
    assert after.measured["cost"] == 3.5
    assert after.lam["cost"] == pytest.approx(1.3)
    assert utility(samples.scores, [grouped], start, samples.prompt).tolist() == [0.0, 0.0, -6.0, -8.0]


@pytest.mark.parametrize(
    ("costs", "lam", "limit", "alarm"),
    [([-1.0] * 4, 0.0, 0.0, "pinned_at_zero"), ([8.0] * 4, 1.9, 0.8, "saturated"), ([8.0] * 4, 0.2, -3.0, "infeasible")],
)
def test_alarms_are_raised_by_constraint(costs, lam, limit, alarm):
    constraints = [replace(COST, limit=limit), Constraint("calm", "reward", Mean(), 0.0)]
    start = DualState(lam={"cost": lam, "calm": 1.0})
    after, _ = dual_round(drawn(costs), constraints, start, Projected(0.5, 2.0), BETA, lowest={"cost": 0.5, "calm": -1.0})
    assert after.alarm == {"cost": alarm, "calm": "none"}


def test_a_score_that_is_not_finite_stops_the_round():
    with pytest.raises(NumericsError):
        dual_round(drawn([math.nan, 0.0, 0.0, 0.0]), [COST], DualState(lam={"cost": 0.0}), Projected(0.1, 2.0), BETA)


def test_only_a_constraint_named_cost_has_the_former_keys():
    named = Constraint("harm", "cost", Mean(), 0.5)
    after, row = dual_round(drawn([1.0, 2.0, 3.0, 4.0]), [named], DualState(lam={"harm": 0.1}), Projected(0.1, 2.0), BETA)
    assert "dual/lambda" not in row
    assert row["dual/harm/lambda"] == 0.1
    metrics = dual_metrics([named], after, {"harm": 0.1})
    assert metrics["dual/harm/measured"] == 2.5
    assert "dual/expected_cost" not in metrics
    assert metrics["dual/rounds"] == 1


PROMPTS, RESPONSES = 6, 8


def exact_samples(constraints, dual, world, per_prompt=2000):
    """Samples of pi*_lambda itself, as a trained policy would draw them."""
    reference_logp, scores = world
    prompt = torch.arange(PROMPTS)[:, None]
    policy = optimal_policy(reference_logp, utility(scores, constraints, dual, prompt), BETA).exp()
    chosen = torch.multinomial(policy, per_prompt, replacement=True, generator=torch.Generator().manual_seed(dual.round))
    return Drawn({name: score.gather(1, chosen).flatten() for name, score in scores.items()}, prompt.expand_as(chosen).flatten())


@pytest.mark.parametrize(
    "update", [Newton(1.0, 5.0, 50.0), Projected(0.1, 50.0), Log(0.1, 50.0), ProportionalIntegral(0.1, 0.5, 50.0)]
)
def test_three_constraints_are_driven_to_their_exact_multipliers(update):
    """Harm, refusals on half of the prompts, and length, under policies that are pi*_lambda: the loop ends where enumeration does.

    2,000 samples a prompt: a measured value has an error of about 0.009, and lambda one of that times beta / variance.
    """
    draw = torch.Generator().manual_seed(11)
    logits, reward, *costs = torch.randn(5, PROMPTS, RESPONSES, generator=draw, dtype=torch.float64)
    scores = {"reward": reward, "harm": costs[0] + 0.6 * reward, "refusal": costs[1] - 0.6 * costs[0], "length": costs[2]}
    world = logits.log_softmax(-1), scores
    benign = torch.arange(PROMPTS) % 2 == 0
    constraints = [
        Constraint("harm", "harm", Mean(), -0.3),
        Constraint("refusal", "refusal", Mean(), 0.1, group=benign),
        Constraint("length", "length", Mean(), 1.0),
    ]
    weighted = torch.stack([c.weighted(scores[c.score], torch.arange(PROMPTS)[:, None]) for c in constraints])
    limits = torch.tensor([c.limit for c in constraints], dtype=torch.float64)
    exact = solve_multipliers(world[0], reward, weighted, BETA, limits)
    assert (exact > 0.05).sum() == 2
    dual = DualState(lam=dict.fromkeys((c.name for c in constraints), 0.3))
    for _ in range(60 if isinstance(update, Newton) else 500):  # gradient steps are slow where costs are correlated
        dual, _ = dual_round(exact_samples(constraints, dual, world), constraints, dual, update, BETA)
    assert [dual.lam[c.name] for c in constraints] == pytest.approx(exact.tolist(), abs=0.05)


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match=r"did you mean mean\?"):
        MEASURES["meen"]
