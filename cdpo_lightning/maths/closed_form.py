"""The exact solution where responses can be enumerated: pi*_lambda, the dual and its root. Tests and reports compare with it.

Shapes: `reference_logp`, `utility`, `reward`, `cost`, `logp` are [P, K]: P prompts, equally likely, K enumerated responses
each. The utility is r - sum_k lambda_k phi_k, whatever the constraints are. Everything is computed in float64. Policies are
restricted to the K responses and renormalised: probability on other responses is ignored. A utility that is not finite or a
beta <= 0 is a NumericsError throughout.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths.preference import lagrangian_reward


def normalise(logp: Tensor) -> Tensor:
    """Return log-probabilities, nats, [P, K] float64, normalised over the K responses of each prompt."""
    return torch.log_softmax(logp.double(), -1)


def expectation(logp: Tensor, value: Tensor) -> float:
    """Return E_{x, y~pi}[value], in the value's unit: the mean over prompts of sum_k exp(logp) value."""
    return float((logp.double().exp() * value.double()).sum(-1).mean())


def optimal_policy(reference_logp: Tensor, utility: Tensor, beta: float) -> Tensor:
    """Return log pi*(y|x) = log pi_ref + u/beta - log Z(x), nats, [P, K] [C-DPO, Eq. 11, u = r - lambda c].

    Raises:
        NumericsError: the utility is not finite or beta not positive.
    """
    return normalise(_tilted(reference_logp, utility, beta))


def log_partition(reference_logp: Tensor, utility: Tensor, beta: float) -> Tensor:
    """Return log Z(x) = log sum_y pi_ref exp(u/beta), nats, [P] [C-DPO, Eq. 11, u = r - lambda c].

    Raises:
        NumericsError: the utility is not finite or beta not positive.
    """
    return torch.logsumexp(_tilted(reference_logp, utility, beta), -1)


def dual_value(reference_logp: Tensor, utility: Tensor, beta: float, lambda_limit: float) -> float:
    """Return g(lambda) = beta E_x log Z_lambda(x) + sum_k lambda_k L_k, reward units [C-DPO, Eq. 9, in closed form].

    Args:
        reference_logp: [P, K].
        utility: r - sum_k lambda_k phi_k, [P, K].
        beta: KL weight, reward units per nat.
        lambda_limit: sum_k lambda_k L_k, reward units; lambda C_limit with one constraint.
    """
    return beta * float(log_partition(reference_logp, utility, beta).mean()) + lambda_limit


def dual_gradient(reference_logp: Tensor, utility: Tensor, beta: float, cost: Tensor, limit: float) -> float:
    """Return dg/dlambda = limit - E_{pi*_lambda}[cost], cost units [C-DPO, Eq. 14]; g is convex, so it rises with lambda."""
    return limit - expectation(optimal_policy(reference_logp, utility, beta), cost)


def dual_hessian(reference_logp: Tensor, utility: Tensor, beta: float, costs: Tensor) -> Tensor:
    """Return d2g/dlambda_j dlambda_k = E_x Cov_{pi*_lambda}(phi_j, phi_k | x) / beta, [C, C] (from Eq. 11).

    Args:
        reference_logp: [P, K].
        utility: r - sum_k lambda_k phi_k, [P, K].
        beta: KL weight, reward units per nat.
        costs: phi of every constraint, [C, P, K], in its units.
    """
    probability = optimal_policy(reference_logp, utility, beta).exp()
    centred = costs.double() - (probability * costs.double()).sum(-1, keepdim=True)
    return torch.einsum("pk,ipk,jpk->ij", probability, centred, centred) / (len(probability) * beta)


def kl_divergence(logp: Tensor, other: Tensor) -> float:
    """Return KL(p || q), nats, mean over prompts; p and q are `logp` and `other`, renormalised over the K responses."""
    p, q = normalise(logp), normalise(other)
    # Where p is 0 the term is 0 by continuity; the plain product would be nan.
    return float(torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1).mean())


def primal_value(logp: Tensor, reference_logp: Tensor, reward: Tensor, beta: float) -> float:
    """Return J_r(pi) = E[r] - beta KL(pi || pi_ref), reward units [C-DPO, Eq. 6]."""
    return expectation(normalise(logp), reward) - beta * kl_divergence(logp, reference_logp)


def lagrangian_value(
    logp: Tensor, reference_logp: Tensor, reward: Tensor, costs: Tensor, lam: Sequence[float], limits: Sequence[float], beta: float
) -> float:
    """Return J(pi, lambda) = J_r(pi) - sum_k lambda_k (E[phi_k] - L_k), reward units [C-DPO, Eq. 8].

    `costs` is phi of every constraint, [C, P, K]; `lam` and `limits` have one number each.
    """
    policy = normalise(logp)
    penalty = sum(one * (expectation(policy, cost) - limit) for one, cost, limit in zip(lam, costs, limits, strict=True))
    return primal_value(logp, reference_logp, reward, beta) - penalty


def duality_gap(
    logp: Tensor, reference_logp: Tensor, reward: Tensor, costs: Tensor, lam: Sequence[float], limits: Sequence[float], beta: float
) -> float:
    """Return g(lambda*) - J(pi, lambda*) >= 0 in reward units: how far a policy is from the constrained optimum (ours).

    It equals beta KL(pi || pi*_lambda*), so it is 0 only at the optimum. For a feasible policy it is also the reward lost
    plus lambda* times the unused part of each limit. The arguments are those of `lagrangian_value`, with lam = lambda*.
    """
    lambda_limit = sum(one * limit for one, limit in zip(lam, limits, strict=True))
    value = lagrangian_value(logp, reference_logp, reward, costs, lam, limits, beta)
    return dual_value(reference_logp, lagrangian_utility(reward, costs, lam), beta, lambda_limit) - value


def lagrangian_utility(reward: Tensor, costs: Tensor, lam: Sequence[float]) -> Tensor:
    """Return u = r - sum_k lambda_k phi_k, reward units, [P, K], of `costs` [C, P, K] and one lambda a constraint."""
    utility = reward.double()
    for one, cost in zip(lam, costs, strict=True):
        utility = lagrangian_reward(utility, cost.double(), one)
    return utility


def reachable_cost_min(cost: Tensor) -> float:
    """Return E_x min_y c(x, y) in cost units: no policy on the K responses has a smaller expected cost."""
    return float(cost.double().amin(-1).mean())


def solve_lambda(reference_logp: Tensor, reward: Tensor, cost: Tensor, beta: float, c_limit: float, lam_max: float = 1e4) -> float:
    """Return lambda*, the minimiser of g over lambda >= 0, to 1e-12 (relative above 1), for one constraint [C-DPO, Eq. 9].

    It is 0 if the limit holds at lambda = 0, and infinite if no policy satisfies the limit strictly (Slater's condition
    fails). `multipliers.solve_multipliers` solves for several constraints.

    Raises:
        NumericsError: the limit is feasible, but lambda* is above `lam_max`.
    """

    def gradient(lam: float) -> float:
        return dual_gradient(reference_logp, lagrangian_reward(reward.double(), cost.double(), lam), beta, cost, c_limit)

    if gradient(0.0) >= 0:
        return 0.0
    if c_limit <= reachable_cost_min(cost):
        return math.inf
    return _increasing_root(gradient, lam_max)


def linear_gaussian_lambda(mean_cost: float, covariance: float, variance_cost: float, beta: float, c_limit: float) -> float:
    """Return lambda* = (mu_c beta + Cov(r, c) - C_limit beta) / Var c, at least 0, for Gaussian (r, c) (ours).

    The moments are those under pi_ref. Under pi*_lambda (Eq. 11) the mean cost is mu_c + (Cov(r, c) - lambda Var c)/beta;
    set it equal to C_limit.

    Raises:
        NumericsError: the variance is not positive, so lambda cannot change the cost.
    """
    if not variance_cost > 0:
        raise NumericsError(f"variance_cost is {variance_cost}, expected a number > 0: a constant cost has no lambda*")
    return max(0.0, (mean_cost * beta + covariance - c_limit * beta) / variance_cost)


def _tilted(reference_logp: Tensor, utility: Tensor, beta: float) -> Tensor:
    if not bool(utility.isfinite().all()):
        raise NumericsError("the utility has a value that is not finite; an infeasible limit has lambda* = infinity and no optimum")
    if not beta > 0:
        raise NumericsError(f"beta is {beta}, expected a number > 0")
    return normalise(reference_logp) + utility.double() / beta


def _increasing_root(function: Callable[[float], float], highest: float) -> float:
    low, high = 0.0, min(1.0, highest)
    while function(high) < 0:
        if high >= highest:
            raise NumericsError(f"lambda* lies above lam_max = {highest}; raise lam_max, or rescale the cost")
        low, high = high, min(2 * high, highest)
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2
