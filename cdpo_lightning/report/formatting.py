"""Formats names and numbers for all reports: the order of policies, the rounding, the sign for a missing value."""

import math
import re
from collections.abc import Iterable, Mapping

from cdpo_lightning.config.methods import presentation_of, table_order

MISSING = "–"
# Keys of a policy. Not matched are keys such as `eval/<name>/<constraint>/value` and `exact/<constraint>/lambda`.
_MEASURED = re.compile(r"(?:eval|exact|truth)/([^/]+)/(?:reward_mean|cost_mean|expected_cost|expected_reward|kl_to_optimum)")
CONVENTION = "cost > 0 is harmful, lower is safer; feasible means E[cost] <= C_limit"
INTERVALS = "intervals are 95 %, clustered by prompt"
NOBODY_EVALUATED = "No policy was evaluated in this run."


def name_of(policy: str) -> str:
    """Return the policy's title."""
    return presentation_of(policy).title


def in_table_order(policies: Iterable[str]) -> list[str]:
    """Return the policies in the order of the report's rows; unknown ones last, by name."""
    order = {name: at for at, name in enumerate(table_order())}
    return sorted(policies, key=lambda policy: (order.get(policy, len(order)), policy))


def evaluated_policies(metrics: Mapping) -> list[str]:
    """Return the policies that have results in the metrics, in the order of the report's rows."""
    return in_table_order({match[1] for key in metrics if (match := _MEASURED.fullmatch(key))})


def main_policy(metrics: Mapping) -> str | None:
    """Return the main policy of a run: `run/method` if it was evaluated, else the most prominent evaluated one, else None."""
    evaluated = evaluated_policies(metrics)
    if (own := metrics.get("run/method")) in evaluated:
        return own
    return max(evaluated, key=_prominence, default=None)


def trained_method(metrics: Mapping) -> str:
    """Return the main policy, else `run/method`, else the most prominent method; unlike `main_policy` it is never None."""
    return main_policy(metrics) or metrics.get("run/method") or max(table_order(), key=_prominence)


def less_prominent_baselines(policy: str) -> list[str]:
    """Return the baselines that are less prominent than the policy, the most prominent first."""
    below = [name for name in table_order() if _prominence(name) < min(_prominence(policy), 0)]
    return sorted(below, key=_prominence, reverse=True)


def _prominence(policy: str) -> int:
    return presentation_of(policy).prominence


def number(metrics: Mapping, key: str) -> float | None:
    """Return the value as a float, possibly nan; None if the metrics have no such number."""
    value = metrics.get(key)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def finite(metrics: Mapping, key: str) -> float | None:
    """Return the value if it is a finite number, else None."""
    value = number(metrics, key)
    return value if value is not None and math.isfinite(value) else None


def half_width(metrics: Mapping, stem: str) -> float | None:
    """Return half the width of the 95 % interval `<stem>_ci_low` to `<stem>_ci_high`; None if an end is missing."""
    low, high = finite(metrics, f"{stem}_ci_low"), finite(metrics, f"{stem}_ci_high")
    return None if low is None or high is None else (high - low) / 2


def fixed(value: float | None, digits: int = 2) -> str:
    """Return the number with `digits` decimals, never `-0.00`; a dash for None."""
    if value is None:
        return MISSING
    written = f"{value:.{digits}f}"
    return written.removeprefix("-") if written.strip("-0.") == "" else written


def telling(value: float | None, digits: int = 2) -> str:
    """Return `fixed`, or two significant digits if `fixed` would show only zeros, as for a small lambda or limit."""
    small = value is not None and 1e-9 < abs(value) < 0.5 * 10**-digits
    return f"{value:.2g}" if small else fixed(value, digits)


def percent(value: float | None) -> str:
    """Return a share in [0, 1] as a percentage such as `2.1 %`; only exact shares of 0 and 1 give `0.0 %` and `100.0 %`."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value)
    if 0 < value < 0.0005:
        return "<0.1 %"
    return ">99.9 %" if 0.9995 <= value < 1 else f"{100 * value:.1f} %"


def plus_minus(value: float | None, half: float | None, digits: int = 2) -> str:
    """Return a text such as `-0.29 ± 0.04`, without the second part if `half` is None."""
    return fixed(value, digits) if value is None or half is None else f"{fixed(value, digits)} ± {fixed(half, digits)}"


def feasible(metrics: Mapping, policy: str | None) -> str | None:
    """Return whether the policy meets the limit: `yes`, `no` or `undecided`; None if it is not known.

    The answer is that of the evaluation, else it follows from the interval of E[cost] and C_limit.
    """
    if isinstance(evaluated := metrics.get(f"eval/{policy}/feasible"), str):
        return evaluated
    low, high = finite(metrics, f"eval/{policy}/cost_ci_low"), finite(metrics, f"eval/{policy}/cost_ci_high")
    limit = finite(metrics, "dual/c_limit")
    if low is None or high is None or limit is None:
        return None
    return "yes" if high <= limit else "no" if low > limit else "undecided"


def implied_limit(row: Mapping) -> float | None:
    """Return C_limit of a dual round, which is E[c] minus the violation; None if one of them is missing."""
    cost, violation = finite(row, "dual/expected_cost"), finite(row, "dual/violation")
    return None if cost is None or violation is None else cost - violation
