"""Composes the titles of a run's figures, each a statement of the figure's result."""

from collections.abc import Mapping, Sequence

from cdpo_lightning.config.methods import presentation_of
from cdpo_lightning.report.figures.style import with_minus_sign
from cdpo_lightning.report.formatting import (
    feasible,
    finite,
    fixed,
    half_width,
    less_prominent_baselines,
    main_policy,
    name_of,
    plus_minus,
    telling,
)
from cdpo_lightning.report.run.verdict import exact_lambda

SETTLED = 0.1  # lambda has settled if its range over the last quarter of the rounds is at most this share of its whole range


def lambda_title(metrics: Mapping, path: Sequence[float]) -> str:
    """Return a title such as `λ settles at 1.17 (exact 1.16)`; others state that lambda still changes, or stays at 0.

    Args:
        metrics: of the run.
        path: the finite values of lambda by round, the one after the last update included.
    """
    if not path:
        return "λ was not recorded"
    last = finite(metrics, "dual/lambda")
    last = path[-1] if last is None else last
    if max(path) == 0 == last:
        return f"λ stays at 0: the limit does not bind{exact_lambda(metrics)}"
    return f"λ {_motion(path)} {telling(last)}{exact_lambda(metrics)}"


def _motion(path: Sequence[float]) -> str:
    tail = path[-max(len(path) // 4, 2) :]
    if len(path) < 5:
        return "is at"
    if max(tail) - min(tail) <= SETTLED * (max(path) - min(path)):
        return "settles at"
    return "is still rising, at" if tail == sorted(tail) else "is still moving, at"


def cost_title(cost: float | None, half: float | None, limit: float | None) -> str:
    """Return a title such as `E[cost] ends at −0.29 ± 0.04, at the limit −0.30`; others have `below` or `above` for `at`."""
    if cost is None:
        return "E[cost] was not recorded"
    title = with_minus_sign(f"E[cost] ends at {plus_minus(cost, half)}")
    return title if limit is None else f"{title}, {_side(cost, half or 0.0, limit)} {_limit(limit)}"


def _side(cost: float, half: float, limit: float) -> str:
    """Return `below`, `above`, or `at` where the interval contains the limit."""
    return "below" if cost + half < limit else "above" if cost - half > limit else "at"


def _limit(limit: float) -> str:
    return f"the limit\N{NO-BREAK SPACE}{with_minus_sign(telling(limit))}"


def reward_cost_title(metrics: Mapping) -> str:
    """Return a title that compares the run's policy with a baseline, preferably DPO, and states whether it meets the limit."""
    policy = main_policy(metrics)
    if policy is None:
        return "Reward against cost"
    titles = (title for other in less_prominent_baselines(policy) if (title := _against(metrics, policy, other)))
    return next(titles, None) or _alone(metrics, policy)


def _against(metrics: Mapping, policy: str, other: str) -> str | None:
    reward, cost = (_difference(metrics, policy, other, key) for key in ("reward_mean", "cost_mean"))
    if reward is None or cost is None:
        return None
    baseline = presentation_of(other).in_sentence or name_of(other)
    same = [key for key in ("reward", "cost") if _same(metrics, policy, other, key)]
    if len(same) == 2:
        change = f"has about the reward and the cost of {baseline}"
    elif same == ["reward"]:
        change = f"has {_change(cost, 'cost')} than {baseline} at about the same reward"
    elif same == ["cost"]:
        change = f"has {_change(reward, 'reward')} than {baseline} at about the same cost"
    elif reward < 0 and cost < 0:
        change = f"gives up {fixed(-reward)} reward for {fixed(-cost)} less cost than {baseline}"
    else:
        change = f"has {_change(reward, 'reward')} and {_change(cost, 'cost')} than {baseline}"
    met = _met(metrics, policy)
    return f"{name_of(policy)} {change}" + (f" and {met}" if met else "")


def _same(metrics: Mapping, policy: str, other: str, key: str) -> bool:
    """Return whether the interval of the paired difference contains 0."""
    low, high = (finite(metrics, f"eval/{policy}/minus_{other}/{key}_ci_{end}") for end in ("low", "high"))
    return low is not None and high is not None and low <= 0 <= high


def _difference(metrics: Mapping, policy: str, other: str, key: str) -> float | None:
    own, theirs = finite(metrics, f"eval/{policy}/{key}"), finite(metrics, f"eval/{other}/{key}")
    return None if own is None or theirs is None else own - theirs


def _change(difference: float, quantity: str) -> str:
    return f"{fixed(abs(difference))} {'more' if difference > 0 else 'less'} {quantity}"


def _alone(metrics: Mapping, policy: str) -> str:
    reward, cost = (
        with_minus_sign(plus_minus(finite(metrics, f"eval/{policy}/{key}_mean"), half_width(metrics, f"eval/{policy}/{key}")))
        for key in ("reward", "cost")
    )
    met = _met(metrics, policy)
    return f"{name_of(policy)}{f' {met}' if met else ''}: reward {reward}, cost {cost}"


def _met(metrics: Mapping, policy: str) -> str:
    limit = finite(metrics, "dual/c_limit")
    verb = {"yes": "meets", "no": "misses", "undecided": "is at"}.get(feasible(metrics, policy) or "")
    return f"{verb} {_limit(limit)}" if limit is not None and verb else ""
