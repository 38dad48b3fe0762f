"""Several multipliers against a convex solver, KKT, a search over active sets and hand values."""

import itertools

import numpy as np
import pytest
import torch
from scipy import optimize

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths import closed_form, multipliers

BETA = 0.4


def random_world(seed, prompts=4, responses=5, constraints=3):
    """Costs that are correlated with one another and with the reward, so that limits bind and compete."""
    draw = torch.Generator().manual_seed(seed)
    logits, reward = torch.randn(2, prompts, responses, generator=draw, dtype=torch.float64)
    costs = torch.randn(constraints, prompts, responses, generator=draw, dtype=torch.float64) + 0.7 * reward
    return logits.log_softmax(-1), reward, costs


def binding_limits(reference_logp, reward, costs, share=0.4):
    """Part of the way from the unconstrained policy's values to those of a policy that avoids all costs."""
    free = (reference_logp + reward / BETA).softmax(-1)
    careful = (reference_logp - 3 * costs.sum(0)).softmax(-1)
    values = [[float((policy * cost).sum(-1).mean()) for cost in costs] for policy in (free, careful)]
    return torch.tensor([a + share * (b - a) for a, b in zip(*values, strict=True)], dtype=torch.float64)


@pytest.mark.parametrize("seed", range(6))
def test_three_multipliers_agree_with_a_convex_solver_that_knows_nothing_of_them(seed):
    """scipy maximises E[r] - beta KL over the policies under three limits; its optimum is pi* at our multipliers."""
    reference_logp, reward, costs = random_world(seed)
    limits = binding_limits(reference_logp, reward, costs)
    lam = multipliers.solve_multipliers(reference_logp, reward, costs, BETA, limits)
    reference, r, c = (t.numpy() for t in (reference_logp.exp(), reward, costs))
    shape, prompts = reference.shape, len(reference)

    def loss(flat):
        p = flat.reshape(shape).clip(1e-12)
        return -((p * r).sum() - BETA * (p * np.log(p / reference)).sum()) / prompts

    def gradient(flat):
        p = flat.reshape(shape).clip(1e-12)
        return (-(r - BETA * (np.log(p / reference) + 1)) / prompts).ravel()

    limited = [
        {"type": "ineq", "fun": lambda f, k=k: limits[k].item() - (f.reshape(shape) * c[k]).sum() / prompts} for k in range(3)
    ]
    solved = optimize.minimize(
        loss,
        reference.ravel(),
        jac=gradient,
        bounds=[(0, 1)] * reference.size,
        constraints=[{"type": "eq", "fun": lambda f: f.reshape(shape).sum(-1) - 1}, *limited],
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    assert solved.success
    utility = reward - torch.einsum("c,cpk->pk", lam, costs)
    value = closed_form.dual_value(reference_logp, utility, BETA, float(lam @ limits))
    assert value == pytest.approx(-solved.fun, abs=1e-6)
    policy = closed_form.optimal_policy(reference_logp, utility, BETA).exp().flatten()
    assert policy.tolist() == pytest.approx(solved.x.tolist(), abs=2e-3)
    assert (lam > 1e-6).sum() >= 1


@pytest.mark.parametrize("seed", range(6))
def test_the_multipliers_satisfy_kkt(seed):
    """lambda >= 0, no limit broken, lambda_k (E phi_k - L_k) = 0, with the tilted policy written out here."""
    reference_logp, reward, costs = random_world(seed)
    limits = binding_limits(reference_logp, reward, costs, share=0.6)
    lam = multipliers.solve_multipliers(reference_logp, reward, costs, BETA, limits)
    policy = (reference_logp + (reward - (lam[:, None, None] * costs).sum(0)) / BETA).softmax(-1)
    violation = (policy * costs).sum(-1).mean(-1) - limits
    assert bool((lam >= 0).all())
    assert violation.max() <= 1e-8
    assert (lam * violation).abs().max() <= 1e-8


def test_one_constraint_is_the_scalar_problem():
    reference_logp, reward, costs = random_world(3, constraints=1)
    limits = binding_limits(reference_logp, reward, costs)
    scalar = closed_form.solve_lambda(reference_logp, reward, costs[0], BETA, limits.item())
    assert multipliers.solve_multipliers(reference_logp, reward, costs, BETA, limits).item() == pytest.approx(scalar, abs=1e-9)


def test_limits_that_no_policy_meets_have_infinite_multipliers():
    """Cost b = 1 - a on both responses: E a <= 0.3 and E b <= 0.3 together are impossible, each alone is not."""
    a = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    costs, zero = torch.stack([a, 1 - a]), torch.zeros(1, 2, dtype=torch.float64)
    limits = torch.tensor([0.3, 0.3], dtype=torch.float64)
    assert multipliers.feasibility_margin(costs, limits) == pytest.approx(-0.2)
    assert multipliers.solve_multipliers(zero, zero, costs, 1.0, limits).tolist() == [float("inf")] * 2
    assert multipliers.feasibility_margin(costs, limits + 0.3) == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(40))
def test_the_nonnegative_newton_step_is_the_best_of_all_active_sets(seed):
    """For each set of multipliers that are held at 0, the others solve a linear system; the feasible one of least value wins."""
    draw = torch.Generator().manual_seed(seed)
    lam = torch.rand(3, generator=draw, dtype=torch.float64)
    gradient = torch.randn(3, generator=draw, dtype=torch.float64)
    factor = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    hessian = factor @ factor.T + 0.1 * torch.eye(3, dtype=torch.float64)

    def value(target):
        d = target - lam
        return float(gradient @ d + d @ hessian @ d / 2)

    candidates = []
    for size in range(4):
        for free in map(list, itertools.combinations(range(3), size)):
            target = torch.zeros(3, dtype=torch.float64)
            if free:
                right = (hessian @ lam - gradient)[free]
                target[free] = torch.linalg.solve(hessian[free][:, free], right)
            if bool((target >= 0).all()):
                candidates.append(target)
    best = min(candidates, key=value)
    step = multipliers.nonnegative_newton(lam, gradient, hessian)
    torch.testing.assert_close(step, best, rtol=0, atol=1e-9)


def test_numbers_that_are_not_finite_and_a_singular_hessian_are_refused():
    lam, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    with pytest.raises(NumericsError, match="finite"):
        multipliers.nonnegative_newton(lam, torch.tensor([0.0, float("nan")], dtype=torch.float64), eye)
    with pytest.raises(NumericsError, match="singular"):
        multipliers.nonnegative_newton(lam, lam, torch.ones(2, 2, dtype=torch.float64))
