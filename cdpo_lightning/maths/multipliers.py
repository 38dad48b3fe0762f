"""The multipliers of several constraints: the exact ones by enumeration, one Newton step, and whether any policy meets the limits.

Shapes: C constraints, P prompts, K enumerated responses. `costs` is phi of every constraint, [C, P, K], already weighted by
1[x in G_k]/P(G_k) where a constraint is over a group of prompts. Everything is computed in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from scipy.sparse import csr_array, hstack, identity, kron
from torch import Tensor

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths import closed_form

_ITERATIONS = 200
_TOLERANCE = 1e-13  # of g, relative to its size above 1


def nonnegative_newton(lam: Tensor, gradient: Tensor, hessian: Tensor) -> Tensor:
    """Return the lambda' >= 0, [C], that minimises gradient . d + d' hessian d / 2 with d = lambda' - lambda (ours).

    With the Cholesky factor hessian = R'R this is the non-negative least squares problem |R lambda' - (R lambda - R'^-1 gradient)|.
    An unconstrained Newton step clipped at 0 is another point if the costs are correlated.

    Raises:
        NumericsError: an input is not finite, or the hessian is not positive definite.
    """
    if not all(bool(value.isfinite().all()) for value in (lam, gradient, hessian)):
        raise NumericsError(f"lambda {lam.tolist()}, dual gradient {gradient.tolist()}: expected finite numbers")
    lower, info = torch.linalg.cholesky_ex(hessian.double())
    if info.item():
        raise NumericsError("the costs' covariance is singular: a cost is constant, or depends on the others")
    target = lower.T @ lam.double() - torch.linalg.solve_triangular(lower, gradient.double()[:, None], upper=False)[:, 0]
    return torch.from_numpy(nnls(lower.T.numpy(), target.numpy())[0])


def solve_multipliers(reference_logp: Tensor, reward: Tensor, costs: Tensor, beta: float, limits: Tensor) -> Tensor:
    """Return lambda*, the minimiser of the convex dual g over lambda >= 0, [C]; all infinite if no policy meets the limits.

    The method is Newton's with the bound lambda >= 0; each step is halved until g falls enough (Armijo's rule).

    Raises:
        NumericsError: the steps do not converge.
    """
    if feasibility_margin(costs, limits) <= 0:
        return torch.full((len(costs),), torch.inf, dtype=torch.float64)

    def g(lam: Tensor) -> float:
        utility = closed_form.lagrangian_utility(reward, costs, lam.tolist())
        return closed_form.dual_value(reference_logp, utility, beta, float(lam @ limits.double()))

    lam = torch.zeros(len(costs), dtype=torch.float64)
    for _ in range(_ITERATIONS):
        utility = closed_form.lagrangian_utility(reward, costs, lam.tolist())
        policy = closed_form.optimal_policy(reference_logp, utility, beta)
        gradient = limits.double() - torch.tensor([closed_form.expectation(policy, cost) for cost in costs], dtype=torch.float64)
        hessian = closed_form.dual_hessian(reference_logp, utility, beta, costs)
        step = nonnegative_newton(lam, gradient, hessian + 1e-12 * torch.eye(len(lam), dtype=torch.float64)) - lam
        slope, value = float(gradient @ step), g(lam)
        if slope >= -_TOLERANCE * max(1.0, abs(value)):
            return lam + step
        size = 1.0
        while g(lam + size * step) > value + 1e-4 * size * slope and size > 1e-9:
            size /= 2
        lam = lam + size * step
    raise NumericsError(f"the multipliers did not converge in {_ITERATIONS} Newton steps: {lam.tolist()}")


def feasibility_margin(costs: Tensor, limits: Tensor) -> float:
    """Return the largest m such that some policy has E[phi_k] <= L_k - m for every k; Slater's condition holds if m > 0.

    m is the value of the dual linear programme: min over nu >= 0 with sum nu = 1 of nu . L - E_x min_y nu . phi.

    Raises:
        NumericsError: the solver fails.
    """
    count, prompts, responses = costs.shape
    phi = csr_array(costs.double().reshape(count, -1).T.numpy())  # nu . phi of every (x, y), prompt by prompt
    own_prompt = csr_array(kron(identity(prompts), np.ones((responses, 1))))
    # Variables: nu [C], then m_x [P] <= nu . phi(x, y) for every y.
    result = linprog(
        np.concatenate([limits.double().numpy(), np.full(prompts, -1 / prompts)]),
        A_ub=hstack([-phi, own_prompt]),
        b_ub=np.zeros(prompts * responses),
        A_eq=np.concatenate([np.ones(count), np.zeros(prompts)])[None],
        b_eq=[1.0],
        bounds=[(0, None)] * count + [(None, None)] * prompts,
    )
    if not result.success:
        raise NumericsError(f"the linear programme for the limits {limits.tolist()} failed: {result.message}")
    return float(result.fun)
