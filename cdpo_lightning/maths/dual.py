"""Update steps of the dual variable lambda, its one-shot start value and its alarms, as functions of floats.

Expected cost is in cost units, `lam` in reward units per cost unit; violation = E[c] - C_limit > 0 means infeasible
and raises lambda. A number that is not finite is always an error: a silent nan would disable the constraint.
"""

import math

import torch
from torch import Tensor

from cdpo_lightning.errors import ConfigError, NumericsError
from cdpo_lightning.maths import closed_form
from cdpo_lightning.maths.preference import lagrangian_reward

VARIANCE_FLOOR = 1e-8
"""Cost units squared: the smallest variance that `newton_step` divides by; with equal costs, `max_step` limits the step."""


def projected_step(lam: float, expected_cost: float, c_limit: float, lr: float, lam_max: float) -> float:
    """Return lambda after a projected gradient step on the dual: clip(lam + lr * (E[c] - C_limit), 0, lam_max) [C-DPO, Eq. 14].

    Stable only for lr < 2 beta / Var(c).

    Raises:
        NumericsError: an input is not finite.
    """
    _require_finite(lam=lam, expected_cost=expected_cost, c_limit=c_limit, lr=lr)
    return _clip(lam + lr * (expected_cost - c_limit), 0.0, lam_max)


def newton_step(
    lam: float,
    expected_cost: float,
    c_limit: float,
    beta: float,
    cost_variance: float,
    damping: float,
    max_step: float,
    lam_max: float,
) -> float:
    """Return lambda after a damped Newton step on the dual (ours), in [0, lam_max].

    It is clip(lam + clip(damping * beta * (E[c] - C_limit) / Var, +-max_step), 0, lam_max). g''(lam) = E_x Var(c|x) / beta, so
    `cost_variance` is the within-prompt variance under the policy, cost units squared. The unclipped step scales with the cost
    as lambda does, so no step size has to be tuned.

    Raises:
        NumericsError: an input is not finite.
    """
    _require_finite(lam=lam, expected_cost=expected_cost, c_limit=c_limit, beta=beta, cost_variance=cost_variance, damping=damping)
    step = damping * beta * (expected_cost - c_limit) / max(cost_variance, VARIANCE_FLOOR)
    return _clip(lam + _clip(step, -max_step, max_step), 0.0, lam_max)


def log_step(lam: float, expected_cost: float, c_limit: float, lr: float, lam_min: float, lam_max: float) -> float:
    """Return lambda after a step on log lambda: log lam + lr * lam * (E[c] - C_limit), lam in [lam_min, lam_max] [SafeRLHF].

    Lambda never reaches 0; one below `lam_min` is raised to it first.

    Raises:
        ConfigError: lam_min is not positive, so it has no logarithm.
        NumericsError: an input is not finite.
    """
    if not lam_min > 0:
        raise ConfigError(f"lam_min: got {lam_min}, expected a number > 0, because the log update cannot leave 0")
    _require_finite(lam=lam, expected_cost=expected_cost, c_limit=c_limit, lr=lr)
    start = max(lam, lam_min)
    exponent = lr * start * (expected_cost - c_limit)
    return _clip(start * math.exp(min(exponent, _LARGEST_EXPONENT)), lam_min, lam_max)


def pi_step(
    lam: float, integral: float, expected_cost: float, c_limit: float, lr: float, proportional: float, lam_max: float
) -> tuple[float, float]:
    """Return (lam, integral) after a proportional-integral step, both in [0, lam_max] (ours, after cooper's nuPI).

      integral <- clip(integral + lr * violation, 0, lam_max)
      lam      <- clip(integral + proportional * violation, 0, lam_max)
    At the fixed point lam = integral; initialise the integral with the initial lambda. Clipping the integral is the
    anti-windup: lambda leaves a bound as soon as the violation changes its sign. The old `lam` acts only through the integral.

    Raises:
        NumericsError: an input is not finite.
    """
    _require_finite(lam=lam, integral=integral, expected_cost=expected_cost, c_limit=c_limit, lr=lr, proportional=proportional)
    violation = expected_cost - c_limit
    integral = _clip(integral + lr * violation, 0.0, lam_max)
    return _clip(integral + proportional * violation, 0.0, lam_max), integral


def one_shot_lambda(reward: Tensor, cost: Tensor, beta: float, c_limit: float, lam_max: float) -> float:
    """Return lambda from reference samples: the root of mean_x sum_k softmax_k((r - lam c)/beta) c = C_limit [CAN].

    `reward`, `cost` [P, K]: K samples of pi_ref for each prompt. The result is 0 if the limit holds at lambda = 0, and `lam_max`
    if no smaller lambda attains it. It is biased upwards (conservative), less so for larger K: log `effective_sample_size` too.

    Raises:
        NumericsError: a score is not finite.
    """
    _require_finite(reward=float(reward.double().sum()), cost=float(cost.double().sum()), c_limit=c_limit, lam_max=lam_max)
    uniform = torch.zeros_like(cost)  # drawn from pi_ref, the samples weigh the same
    slack_at = {
        lam: closed_form.dual_gradient(uniform, lagrangian_reward(reward.double(), cost.double(), lam), beta, cost, c_limit)
        for lam in (0.0, lam_max)
    }
    if slack_at[0.0] < 0 and slack_at[lam_max] <= 0:
        return lam_max
    return min(lam_max, closed_form.solve_lambda(uniform, reward, cost, beta, c_limit, lam_max))


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """Return Kish's effective sample size (sum w)^2 / sum w^2 of each prompt's K weights, [P], between 1 and K.

    `log_weight` [P, K] need not be normalised: (r - lam c)/beta for samples of pi_ref.
    """
    return torch.exp(2 * torch.logsumexp(log_weight, -1) - torch.logsumexp(2 * log_weight, -1))


def alarm(lam: float, lam_max: float, violation: float, standard_error: float, minimum_cost: float | None, c_limit: float) -> str:
    """Return the alarm of the dual after an update: "none", "pinned_at_zero", "saturated" or "infeasible" (ours).

    `infeasible`: the limit is violated and below `minimum_cost`, the mean over prompts of the smallest cost seen (None:
    unknown), so no reweighting of the responses seen meets it. `saturated`: the limit is violated and lambda is `lam_max`.
    `pinned_at_zero`: lambda is 0 and the limit is not violated by more than two standard errors, so the constraint does not
    bind. If several apply, the first in this order is returned.

    Raises:
        NumericsError: lam, violation, minimum_cost or c_limit is not finite, or the standard error is nan.
    """
    floor = c_limit if minimum_cost is None else minimum_cost
    _require_finite(lam=lam, violation=violation, c_limit=c_limit, minimum_cost=floor)
    if math.isnan(standard_error):
        raise NumericsError("standard_error is nan; expected a number >= 0 or infinity")
    if violation > 0 and c_limit < floor:
        return "infeasible"
    if violation > 0 and lam >= lam_max:
        return "saturated"
    if lam <= 0 and violation <= 2 * standard_error:
        return "pinned_at_zero"
    return "none"


_LARGEST_EXPONENT = 700.0  # exp overflows a float just above 709


def _clip(value: float, low: float, high: float) -> float:
    if not low <= high:  # also true of a nan bound, which min and max would ignore
        raise NumericsError(f"the range [{low}, {high}] is empty; expected the lower bound below the upper")
    return min(max(value, low), high)


def _require_finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NumericsError(f"{name} is {value}, expected a finite number; a dual step from it would disable the constraint")
