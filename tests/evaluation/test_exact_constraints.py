"""The exact problem with three constraints, one over a group of prompts, against a solver of the primal problem."""

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, linprog, minimize

from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.evaluation.exact import ExactProblem

BETA, SHAPE = 0.7, (4, 5)
GROUP = torch.tensor([True, False, True, True])
NAMES = ("cost", "toxic", "risky")  # the last over the group
SLACK = 99.0
LIMITS = {  # of the three
    "all bind": (-0.2, -0.2, -0.5),
    "the first two imply the third": (-0.15, -0.2, -0.25),
    "one is slack": (-0.15, SLACK, -0.25),
    "the group alone binds": (SLACK, SLACK, -0.6),
    "none binds": (SLACK, SLACK, SLACK),
}


def problem(limits, names=NAMES):
    generator = torch.Generator().manual_seed(11)
    reference, reward, *costs = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(5))
    scores = {"reward": reward, **{f"score_{i}": cost + 0.5 * reward for i, cost in enumerate(costs)}}
    groups = (None, None, GROUP)
    constraints = [
        Constraint(name, f"score_{i}", Mean(), limit, group)
        for i, (name, limit, group) in enumerate(zip(names, limits, groups, strict=True))
    ]
    truth = {"reward": reward, "cost": scores["score_0"]}
    return ExactProblem(reference.log_softmax(1), scores, truth, constraints, BETA, rows=[])


def expectations(given, policy):
    """E[phi] of the three under the policy [P, K] by plain sums; of the last over the prompts of the group alone."""
    per_prompt = [(policy * given.scores[f"score_{i}"].numpy()).sum(1) for i in range(3)]
    return [float(per_prompt[0].mean()), float(per_prompt[1].mean()), float(per_prompt[2][GROUP.numpy()].mean())]


def primal_optimum(given):
    """max E[r] - beta KL over probabilities [P, K] with E[phi_k] <= L_k, by sequential quadratic programming."""
    reward, log_reference = given.scores["reward"].numpy(), given.reference_logp.numpy()
    prompts = SHAPE[0]

    def loss(flat):
        policy = flat.reshape(SHAPE)
        return -float((policy * (reward - BETA * (np.log(policy) - log_reference))).sum()) / prompts

    def gradient(flat):
        policy = flat.reshape(SHAPE)
        return -(reward - BETA * (np.log(policy) - log_reference + 1)).ravel() / prompts

    in_group = GROUP.numpy()[:, None] / GROUP.sum().item()
    rows = [(given.scores[f"score_{i}"].numpy() * (in_group if i == 2 else 1 / prompts)).ravel() for i in range(3)]
    simplex = np.kron(np.eye(prompts), np.ones(SHAPE[1]))
    result = minimize(
        loss,
        np.full(np.prod(SHAPE), 1 / SHAPE[1]),
        jac=gradient,
        method="SLSQP",
        bounds=[(1e-12, 1)] * int(np.prod(SHAPE)),
        constraints=[LinearConstraint(simplex, 1, 1), LinearConstraint(np.array(rows), -np.inf, given.limits)],
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return result.x.reshape(SHAPE), -float(result.fun)


def some_policy_meets(given):
    """Whether there are probabilities [P, K] with E[phi_k] <= L_k, by a linear programme over all of them."""
    in_group = GROUP.numpy()[:, None] / GROUP.sum().item()
    rows = [(given.scores[f"score_{i}"].numpy() * (in_group if i == 2 else 1 / SHAPE[0])).ravel() for i in range(3)]
    simplex = np.kron(np.eye(SHAPE[0]), np.ones(SHAPE[1]))
    result = linprog(np.zeros(np.prod(SHAPE)), np.array(rows), given.limits, simplex, np.ones(SHAPE[0]), bounds=(0, 1))
    return bool(result.success)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_the_multipliers_satisfy_the_conditions_of_karush_kuhn_and_tucker(limits):
    given = problem(limits)
    lam = given.solve()
    values = expectations(given, given.optimum(lam).exp().numpy())
    for name, limit, value in zip(NAMES, limits, values, strict=True):
        assert lam[name] >= 0
        assert value <= limit + 1e-9
        assert lam[name] * (value - limit) == pytest.approx(0, abs=1e-8)


def test_the_limits_that_bind_have_multipliers():
    for case, binding in {
        "all bind": {"cost", "toxic", "risky"},
        "the first two imply the third": {"cost", "toxic"},
        "one is slack": {"cost", "risky"},
        "the group alone binds": {"risky"},
        "none binds": set(),
    }.items():
        assert {name for name, lam in problem(LIMITS[case]).solve().items() if lam > 0.01} == binding, case


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_the_optimum_is_that_of_the_primal_problem(limits):
    given = problem(limits)
    policy, value = primal_optimum(given)
    np.testing.assert_allclose(given.optimum(given.solve()).exp().numpy(), policy, atol=1e-6)
    metrics = given.metrics()
    assert metrics["exact/dual_value"] == pytest.approx(value, abs=1e-6), "strong duality"
    assert metrics["exact/expected_reward"] == pytest.approx(
        float((policy * given.scores["reward"].numpy()).sum(1).mean()), abs=1e-6
    )
    for name, expected in zip(NAMES, expectations(given, policy), strict=True):
        assert metrics[f"exact/{name}/value"] == pytest.approx(expected, abs=1e-6)


def test_the_range_in_which_each_limit_binds():
    """The smallest reachable value takes the best response of each prompt, of the group's prompts where it is over a group."""
    given = problem(LIMITS["all bind"])
    metrics = given.metrics()
    best = [given.scores[f"score_{i}"].min(1).values for i in range(3)]
    smallest = [float(best[0].mean()), float(best[1].mean()), float(best[2][GROUP].mean())]
    tilted = (given.reference_logp + given.scores["reward"] / BETA).softmax(1).numpy()
    reference = expectations(given, given.reference_logp.exp().numpy())
    for name, low, high, at_reference in zip(NAMES, smallest, expectations(given, tilted), reference, strict=True):
        assert metrics[f"exact/{name}/reachable_min"] == pytest.approx(low)
        assert metrics[f"exact/{name}/unconstrained"] == pytest.approx(high)
        assert metrics[f"exact/{name}/reference"] == pytest.approx(at_reference)


def test_a_policy_is_compared_with_the_optimum_of_all_three():
    given = problem(LIMITS["all bind"])
    best = given.optimum(given.solve())
    at_best = given.policy_metrics("x", best)
    assert at_best["exact/x/kl_to_optimum"] == pytest.approx(0, abs=1e-10)
    assert at_best["exact/x/duality_gap"] == pytest.approx(0, abs=1e-10)
    other = given.policy_metrics("x", given.reference_logp)
    kl = float((given.reference_logp.exp() * (given.reference_logp - best)).sum(1).mean())
    assert other["exact/x/kl_to_optimum"] == pytest.approx(kl, abs=1e-10)
    assert other["exact/x/duality_gap"] == pytest.approx(BETA * kl, abs=1e-9)
    for name, value in zip(NAMES, expectations(given, given.reference_logp.exp().numpy()), strict=True):
        assert other[f"exact/x/{name}/value"] == pytest.approx(value)


@pytest.mark.parametrize(
    "limits", [(-99.0, SLACK, SLACK), (SLACK, SLACK, -99.0), (-0.6, -0.6, -1.2)], ids=["cost", "the group", "together"]
)
def test_limits_that_no_policy_meets_have_no_multipliers(limits):
    given = problem(limits)
    assert not some_policy_meets(given)
    assert given.solve() is None
    metrics = given.metrics() | given.policy_metrics("x", given.reference_logp)
    assert not [key for key in metrics if key.endswith(("lambda", "dual_value", "kl_to_optimum", "duality_gap"))]
    assert {f"exact/{name}/reachable_min" for name in NAMES} <= metrics.keys()
    assert all(np.isfinite(list(row.values())).all() for row in given.frontier())


def test_limits_that_cannot_be_met_together_can_be_met_one_by_one():
    for i, limit in enumerate((-0.6, -0.6, -1.2)):
        alone = problem(tuple(limit if i == k else SLACK for k in range(3)))
        assert some_policy_meets(alone)
        assert alone.solve() is not None


FORMER = {
    "exact/lambda": "exact/cost/lambda",
    "exact/expected_cost": "exact/cost/value",
    "exact/unconstrained_expected_cost": "exact/cost/unconstrained",
    "exact/reachable_cost_min": "exact/cost/reachable_min",
    "exact/reference_expected_cost": "exact/cost/reference",
    "exact/x/expected_cost": "exact/x/cost/value",
}


@pytest.mark.parametrize("names", [NAMES, ("toxic", "risky", "cost")], ids=["first", "last"])
def test_the_former_keys_are_those_of_the_constraint_named_cost(names):
    given = problem(LIMITS["all bind"], names)
    metrics = given.metrics() | given.policy_metrics("x", given.reference_logp)
    assert {old: metrics[old] for old in FORMER} == {old: metrics[new] for old, new in FORMER.items()}


def test_without_a_constraint_named_cost_there_are_no_former_keys():
    given = problem(LIMITS["all bind"], ("harm", "toxic", "risky"))
    metrics = given.metrics() | given.policy_metrics("x", given.reference_logp)
    assert not FORMER.keys() & metrics.keys()
    assert metrics["exact/harm/lambda"] > 0


def test_the_frontier_scales_the_multipliers_together_and_passes_the_optimum():
    """With four points, the second of them is at the largest multiplier of the solution if that is at least 1."""
    given = problem((-0.5, -0.5, -1.0))
    lam = given.solve()
    assert max(lam.values()) >= 1
    first, second, *_ = given.frontier(points=4)
    assert first["lambda"] == 0
    assert first["expected_cost"] == pytest.approx(given.metrics()["exact/cost/unconstrained"])
    assert second["lambda"] == pytest.approx(max(lam.values()))
    assert second["expected_cost"] == pytest.approx(given.metrics()["exact/cost/value"], abs=1e-6)
