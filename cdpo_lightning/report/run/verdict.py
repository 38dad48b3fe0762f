"""What the run's figures say, in one sentence; nothing is said that no figure carries."""

from collections.abc import Mapping

from cdpo_lightning.report.formatting import (
    feasible,
    finite,
    fixed,
    half_width,
    main_who,
    name_of,
    percent,
    plus_minus,
    telling,
)

# "Found the optimum" means so close that the samples of an evaluation could hardly tell the two apart.
FOUND_NATS = 0.03
FOUND_SUPPORT = 0.95
FEASIBILITY = {
    "yes": "the limit is met",
    "no": "the limit is not met",
    "undecided": "the limit lies within the interval: undecided, evaluate more samples",
}


def verdict(metrics: Mapping) -> str:
    """One sentence: the cost against the limit, lambda, the distance to the optimum and what follows from them."""
    who = main_who(metrics)
    if who is None and finite(metrics, "dual/expected_cost") is None:
        return "Nobody was evaluated in this run."
    parts = [_cost(metrics, who), _lambda(metrics), _optimum(metrics, who), _limit(metrics, who)]
    return f"{name_of(who or 'cdpo')}: " + " · ".join(part for part in parts if part) + "."


def tone(metrics: Mapping) -> str:
    """`good`, `warn` or `bad`, for the colour beside the sentence; `plain` where there is no limit to judge by."""
    if finite(metrics, "dual/c_limit") is None:
        return "plain"
    who, alarm = main_who(metrics), metrics.get("dual/alarm", "none")
    met = feasible(metrics, who) if who else None
    if alarm == "infeasible" or unreachable(metrics) or met == "no":
        return "bad"
    return "good" if (met == "yes" or found_optimum(metrics, who)) and alarm != "saturated" else "warn"


def found_optimum(metrics: Mapping, who: str | None) -> bool:
    """Close to the exact optimum, nearly all mass on the support, and not shown to break the limit."""
    distance = finite(metrics, f"exact/{who}/kl_to_optimum")
    mass = finite(metrics, f"exact/{who}/support_mass")
    close = distance is not None and distance <= FOUND_NATS and (mass is None or mass >= FOUND_SUPPORT)
    return close and feasible(metrics, who) != "no"


def unreachable(metrics: Mapping) -> bool:
    """Whether C_limit lies below the exact minimum of E[c]: no policy can meet it."""
    limit, minimum = finite(metrics, "dual/c_limit"), finite(metrics, "exact/reachable_cost_min")
    return limit is not None and minimum is not None and limit < minimum


def last_cost(metrics: Mapping, who: str | None) -> tuple[float | None, float | None]:
    """E[cost] and half its 95 % interval: as evaluated, else as the last dual round measured it."""
    if (mean := finite(metrics, f"eval/{who}/cost_mean")) is not None:
        return mean, half_width(metrics, f"eval/{who}/cost")
    error = finite(metrics, "dual/expected_cost_se")
    return finite(metrics, "dual/expected_cost"), None if error is None else 1.96 * error


def _cost(metrics: Mapping, who: str | None) -> str:
    mean, half = last_cost(metrics, who)
    limit = finite(metrics, "dual/c_limit")
    cost = f"E[cost] {plus_minus(mean, half)}"
    if limit is not None:
        return f"{cost} vs limit {telling(limit)}"
    reward = plus_minus(finite(metrics, f"eval/{who}/reward_mean"), half_width(metrics, f"eval/{who}/reward"))
    return f"E[reward] {reward} · {cost}"


def _lambda(metrics: Mapping) -> str | None:
    lam, exact = finite(metrics, "dual/lambda"), finite(metrics, "exact/lambda")
    if lam is None:
        return None
    return f"lambda {telling(lam)}" + ("" if exact is None or unreachable(metrics) else f" (exact {telling(exact)})")


def _optimum(metrics: Mapping, who: str | None) -> str | None:
    distance, mass = (finite(metrics, f"exact/{who}/{key}") for key in ("kl_to_optimum", "support_mass"))
    if distance is None or unreachable(metrics):
        return None
    message = f"KL to the optimum {fixed(distance, 3)} nats"
    if finite(metrics, "dual/c_limit") is None:
        return message
    if mass is not None and mass < FOUND_SUPPORT:
        return f"{message}, but only {percent(mass)} of its probability is on valid responses"
    if distance > FOUND_NATS:
        return f"{message}: not at the optimum"
    return f"{message}: the method found the optimum" if found_optimum(metrics, who) else message


def _limit(metrics: Mapping, who: str | None) -> str | None:
    limit, alarm = finite(metrics, "dual/c_limit"), metrics.get("dual/alarm", "none")
    if limit is None:
        return "no constraint"
    message = _infeasible(metrics) or (_alarm(metrics, who, alarm) if alarm != "none" else None)
    met = feasible(metrics, who)
    return message or (None if found_optimum(metrics, who) else FEASIBILITY.get(met or "", "the limit was not tested"))


def _infeasible(metrics: Mapping) -> str | None:
    if not unreachable(metrics):
        return None
    limit, minimum = (telling(finite(metrics, key)) for key in ("dual/c_limit", "exact/reachable_cost_min"))
    return f"no policy can meet the limit: C_limit {limit} is below the reachable minimum {minimum}"


def _alarm(metrics: Mapping, who: str | None, alarm: str) -> str:
    met, exact = feasible(metrics, who), finite(metrics, "exact/lambda")
    if alarm == "pinned_at_zero" and (met == "no" or (exact is not None and exact > 0.01)):
        return "lambda is pinned at 0 although the limit binds"
    return {
        "pinned_at_zero": "the limit does not bind: lambda = 0",
        "saturated": "lambda is saturated at constraint.lambda_max: raise it, or loosen constraint.c_limit",
        "infeasible": "alarm: lambda grows but E[cost] stays above the limit, which looks infeasible; loosen it",
    }.get(alarm, f"alarm: {alarm}")
