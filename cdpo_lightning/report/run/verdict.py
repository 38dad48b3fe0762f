"""Composes the verdict on a run: one sentence from its metrics."""

from collections.abc import Mapping

from cdpo_lightning.report.formatting import (
    NOBODY_EVALUATED,
    feasible,
    finite,
    fixed,
    half_width,
    main_policy,
    name_of,
    percent,
    plus_minus,
    telling,
    trained_method,
)

# The samples of an evaluation can hardly distinguish a policy this close to the exact optimum from the optimum.
OPTIMUM_NATS = 0.03
OPTIMUM_SUPPORT = 0.95
FEASIBILITY = {
    "yes": "the limit is met",
    "no": "the limit is not met",
    "undecided": "the limit lies within the interval: undecided, evaluate more samples",
}


def verdict(metrics: Mapping) -> str:
    """Return the verdict in one sentence: cost and limit, lambda, distance to the optimum, and the conclusion."""
    policy = main_policy(metrics)
    if policy is None and finite(metrics, "dual/expected_cost") is None:
        return NOBODY_EVALUATED
    parts = [_cost(metrics, policy), _lambda(metrics), _optimum(metrics, policy), _limit(metrics, policy)]
    return f"{name_of(trained_method(metrics))}: " + " · ".join(part for part in parts if part) + "."


def tone(metrics: Mapping) -> str:
    """Return the tone of the verdict, which decides its colour: `good`, `warn` or `bad`; `plain` without a limit."""
    if finite(metrics, "dual/c_limit") is None:
        return "plain"
    policy, alarm = main_policy(metrics), metrics.get("dual/alarm", "none")
    met = feasible(metrics, policy) if policy else None
    if alarm == "infeasible" or unreachable(metrics) or met == "no":
        return "bad"
    return "good" if (met == "yes" or at_optimum(metrics, policy)) and alarm != "saturated" else "warn"


def at_optimum(metrics: Mapping, policy: str | None) -> bool:
    """Return whether the policy is close to the exact optimum and puts nearly all probability on valid responses.

    False also if the evaluation shows that it misses the limit.
    """
    distance = finite(metrics, f"exact/{policy}/kl_to_optimum")
    mass = finite(metrics, f"exact/{policy}/support_mass")
    close = distance is not None and distance <= OPTIMUM_NATS and (mass is None or mass >= OPTIMUM_SUPPORT)
    return close and feasible(metrics, policy) != "no"


def unreachable(metrics: Mapping) -> bool:
    """Return whether C_limit is below the exact minimum of E[c], so that no policy can meet it."""
    limit, minimum = finite(metrics, "dual/c_limit"), finite(metrics, "exact/reachable_cost_min")
    return limit is not None and minimum is not None and limit < minimum


def exact_lambda(metrics: Mapping) -> str:
    """Return a text such as ` (exact 1.16)`; empty if the exact lambda is not known or the limit is unreachable."""
    exact = finite(metrics, "exact/lambda")
    return "" if exact is None or unreachable(metrics) else f" (exact {telling(exact)})"


def _last_cost(metrics: Mapping, policy: str | None) -> tuple[float | None, float | None]:
    """Return E[cost] and the half-width of its 95 % interval, from the evaluation or else from the last dual round."""
    if (mean := finite(metrics, f"eval/{policy}/cost_mean")) is not None:
        return mean, half_width(metrics, f"eval/{policy}/cost")
    error = finite(metrics, "dual/expected_cost_se")
    return finite(metrics, "dual/expected_cost"), None if error is None else 1.96 * error


def _cost(metrics: Mapping, policy: str | None) -> str:
    limit, cost = finite(metrics, "dual/c_limit"), f"E[cost] {plus_minus(*_last_cost(metrics, policy))}"
    if limit is not None:
        return f"{cost} vs limit {telling(limit)}"
    reward = plus_minus(finite(metrics, f"eval/{policy}/reward_mean"), half_width(metrics, f"eval/{policy}/reward"))
    return f"E[reward] {reward} · {cost}"


def _lambda(metrics: Mapping) -> str | None:
    lam = finite(metrics, "dual/lambda")
    return None if lam is None else f"lambda {telling(lam)}{exact_lambda(metrics)}"


def _optimum(metrics: Mapping, policy: str | None) -> str | None:
    distance, mass = (finite(metrics, f"exact/{policy}/{key}") for key in ("kl_to_optimum", "support_mass"))
    if distance is None or unreachable(metrics):
        return None
    text = f"KL to the optimum {fixed(distance, 3)} nats"
    if finite(metrics, "dual/c_limit") is None:
        return text
    if mass is not None and mass < OPTIMUM_SUPPORT:
        return f"{text}, but only {percent(mass)} of its probability is on valid responses"
    if distance > OPTIMUM_NATS:
        return f"{text}: not at the optimum"
    return f"{text}: the method reached the optimum" if at_optimum(metrics, policy) else text


def _limit(metrics: Mapping, policy: str | None) -> str | None:
    limit, alarm = finite(metrics, "dual/c_limit"), metrics.get("dual/alarm", "none")
    if limit is None:
        return "no constraint"
    if text := _infeasible(metrics) or (_alarm(metrics, policy, alarm) if alarm != "none" else None):
        return text
    met = feasible(metrics, policy)
    return None if at_optimum(metrics, policy) else FEASIBILITY.get(met or "", "the limit was not tested")


def _infeasible(metrics: Mapping) -> str | None:
    if not unreachable(metrics):
        return None
    limit, minimum = (telling(finite(metrics, key)) for key in ("dual/c_limit", "exact/reachable_cost_min"))
    return f"no policy can meet the limit: C_limit {limit} is below the reachable minimum {minimum}"


def _alarm(metrics: Mapping, policy: str | None, alarm: str) -> str:
    met, exact = feasible(metrics, policy), finite(metrics, "exact/lambda")
    if alarm == "pinned_at_zero" and (met == "no" or (exact is not None and exact > 0.01)):
        return "lambda is pinned at 0 although the limit binds"
    return {
        "pinned_at_zero": "the limit does not bind: lambda = 0",
        "saturated": "lambda is saturated at constraint.lambda_max: raise it, or loosen constraint.c_limit",
        "infeasible": "alarm: lambda grows but E[cost] stays above the limit, which looks infeasible; loosen it",
    }.get(alarm, f"alarm: {alarm}")
