"""What each figure shows, said in its title."""

from collections.abc import Mapping, Sequence

from cdpo_lightning.report.figures.style import signed
from cdpo_lightning.report.formatting import (
    BASELINES,
    feasible,
    finite,
    fixed,
    half_width,
    main_who,
    name_of,
    plus_minus,
    telling,
)
from cdpo_lightning.report.run.verdict import unreachable

SETTLED = 0.1  # the last quarter of the rounds stays within so much of lambda's whole range


def lambda_title(metrics: Mapping, path: Sequence[float]) -> str:
    """`λ settles at 1.17 (exact 1.16)`, or that it still moves, or that it never left 0.

    Args:
        path: the finite values of lambda, round by round, the last step's result included.
    """
    if not path:
        return "λ was not recorded"
    last, exact = finite(metrics, "dual/lambda"), finite(metrics, "exact/lambda")
    last = path[-1] if last is None else last
    known = "" if exact is None or unreachable(metrics) else f" (exact {telling(exact)})"
    if max(path) == 0 == last:
        return f"λ stays at 0: the limit does not bind{known}"
    return f"λ {_motion(path)} {telling(last)}{known}"


def _motion(path: Sequence[float]) -> str:
    tail = path[-max(len(path) // 4, 2) :]
    if len(path) < 5:
        return "is at"
    if max(tail) - min(tail) <= SETTLED * (max(path) - min(path)):
        return "settles at"
    return "is still rising, at" if tail == sorted(tail) else "is still moving, at"


def cost_title(cost: float | None, half: float | None, limit: float | None) -> str:
    """`E[cost] ends at −0.29 ± 0.04, the limit is −0.30`, with the side it is on."""
    if cost is None:
        return "E[cost] was not recorded"
    message = signed(f"E[cost] ends at {plus_minus(cost, half)}")
    if limit is None:
        return message
    return f"{message}, {side(cost, half or 0.0, limit)} the limit\N{NO-BREAK SPACE}{signed(telling(limit))}"


def side(cost: float, half: float, limit: float) -> str:
    """`below`, `above`, or `at` where the interval holds the limit."""
    return "below" if cost + half < limit else "above" if cost - half > limit else "at"


def trade_title(metrics: Mapping) -> str:
    """What the run's method gives up against DPO, or else against where it started, and whether it meets the limit."""
    who = main_who(metrics)
    if who is None:
        return "Reward against cost"
    others = BASELINES[BASELINES.index(who) + 1 :] if who in BASELINES else BASELINES
    against = (message for other in others if (message := _against(metrics, who, other)))
    return next(against, None) or _alone(metrics, who)


def _against(metrics: Mapping, who: str, other: str) -> str | None:
    reward, cost = (_difference(metrics, who, other, key) for key in ("reward_mean", "cost_mean"))
    if reward is None or cost is None:
        return None
    its = f"{'the ' if other == 'reference' else ''}{name_of(other)}"
    same = [key for key in ("reward", "cost") if _same(metrics, who, other, key)]
    if len(same) == 2:
        change = f"has about the reward and the cost of {its}"
    elif same == ["reward"]:
        change = f"has {_change(cost, 'cost')} than {its} at about the same reward"
    elif same == ["cost"]:
        change = f"has {_change(reward, 'reward')} than {its} at about the same cost"
    elif reward < 0 and cost < 0:
        change = f"gives up {fixed(-reward)} reward for {fixed(-cost)} less cost than {its}"
    else:
        change = f"has {_change(reward, 'reward')} and {_change(cost, 'cost')} than {its}"
    return f"{name_of(who)} {change}{_met(metrics, who)}"


def _same(metrics: Mapping, one: str, other: str, key: str) -> bool:
    """Whether the interval of the paired difference holds 0."""
    low, high = (finite(metrics, f"eval/{one}/minus_{other}/{key}_ci_{end}") for end in ("low", "high"))
    return low is not None and high is not None and low <= 0 <= high


def _difference(metrics: Mapping, one: str, other: str, key: str) -> float | None:
    mine, its = finite(metrics, f"eval/{one}/{key}"), finite(metrics, f"eval/{other}/{key}")
    return None if mine is None or its is None else mine - its


def _change(difference: float, thing: str) -> str:
    return f"{fixed(abs(difference))} {'more' if difference > 0 else 'less'} {thing}"


def _alone(metrics: Mapping, who: str) -> str:
    reward, cost = (
        signed(plus_minus(finite(metrics, f"eval/{who}/{key}_mean"), half_width(metrics, f"eval/{who}/{key}")))
        for key in ("reward", "cost")
    )
    return f"{name_of(who)}{_met(metrics, who).removeprefix(' and')}: reward {reward}, cost {cost}"


def _met(metrics: Mapping, who: str) -> str:
    limit = finite(metrics, "dual/c_limit")
    message = {"yes": "meets", "no": "misses", "undecided": "is at"}.get(feasible(metrics, who) or "")
    return f" and {message} the limit\N{NO-BREAK SPACE}{signed(telling(limit))}" if limit is not None and message else ""
