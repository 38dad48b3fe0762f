"""How names and numbers are written everywhere in the report: one rounding, one order, one sign for "not measured"."""

import math
import re
from collections.abc import Mapping

MISSING = "–"
NAMES = {
    "reference": "reference",
    "sft": "SFT",
    "dpo": "DPO",
    "safe_dpo": "SafeDPO",
    "cost_only": "cost only",
    "cdpo_fixed": "C-DPO, fixed lambda",
    "cdpo": "C-DPO",
    "cdpo_paper": "C-DPO, as published",
    "cdpo_argmax": "C-DPO, argmax labels",
    "sacpo": "SACPO",
    "pd_dpo": "PD-DPO",
    "pd_dpo_complete": "PD-DPO, complete",
    "o_pd_dpo": "O-PD-DPO",
    "ppo_lag": "PPO-Lagrangian",
    "optimum": "optimum (exact)",
}
# Whose verdict a run is about, the most telling first; a method that is not listed comes after these and before `dpo`.
HEADLINE = ("cdpo", "o_pd_dpo", "pd_dpo", "ppo_lag", "cdpo_fixed")
BASELINES = ("dpo", "cost_only", "sft", "reference")
MEASURED = re.compile(r"(?:eval|exact|truth)/([^/]+)/(?:reward_mean|cost_mean|expected_cost|expected_reward|kl_to_optimum)")
CONVENTION = "cost > 0 is harmful, lower is safer; feasible means E[cost] <= C_limit"


def name_of(who: str) -> str:
    """The method's name for people; an unknown one as it stands."""
    return NAMES.get(who, who)


def whos(metrics: Mapping) -> list[str]:
    """Everyone the run measured: the known ones in the table's order, then the others by name."""
    result = {match[1] for key in metrics if (match := MEASURED.fullmatch(key))}
    known = list(NAMES)
    return sorted(result, key=lambda who: (known.index(who) if who in NAMES else len(known), who))


def main_who(metrics: Mapping) -> str | None:
    """Whom the run is about: `run/method` where it was measured, else the most telling method; None if nobody was."""
    result = whos(metrics)
    others = [who for who in result if who not in HEADLINE + BASELINES]
    ranked = [metrics.get("run/method"), *HEADLINE, *others, *BASELINES]
    return next((who for who in ranked if who in result), None)


def number(metrics: Mapping, key: str) -> float | None:
    """The value as a float, nan included; None where it was not measured."""
    value = metrics.get(key)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def finite(metrics: Mapping, key: str) -> float | None:
    """The value where it is a finite number, else None: what can be drawn or reasoned about."""
    value = number(metrics, key)
    return value if value is not None and math.isfinite(value) else None


def half_width(metrics: Mapping, stem: str) -> float | None:
    """Half of the 95 % interval `<stem>_ci_low` to `<stem>_ci_high`."""
    low, high = finite(metrics, f"{stem}_ci_low"), finite(metrics, f"{stem}_ci_high")
    return None if low is None or high is None else (high - low) / 2


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals, never `-0.00`; a dash where it was not measured."""
    if value is None:
        return MISSING
    written = f"{value:.{digits}f}"
    return written.removeprefix("-") if written.strip("-0.") == "" else written


def telling(value: float | None, digits: int = 2) -> str:
    """`fixed`, but two significant digits where all decimals would be zero: for lambda and limits, often small."""
    small = value is not None and 1e-9 < abs(value) < 0.5 * 10**-digits
    return f"{value:.2g}" if small else fixed(value, digits)


def percent(value: float | None) -> str:
    """A share in [0, 1] as `2.1 %`; never rounded up to 100 nor, unless it is exactly 0, down to 0."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value)
    if 0 < value < 0.0005:
        return "<0.1 %"
    return ">99.9 %" if 0.9995 <= value < 1 else f"{100 * value:.1f} %"


def plus_minus(value: float | None, half: float | None, digits: int = 2) -> str:
    """`-0.29 ± 0.04`, the half-width left out where it was not measured."""
    return fixed(value, digits) if value is None or half is None else f"{fixed(value, digits)} ± {fixed(half, digits)}"


def feasible(metrics: Mapping, who: str | None) -> str | None:
    """`yes`, `no` or `undecided` as evaluated, else by the same rule from the interval and C_limit; None without."""
    if isinstance(message := metrics.get(f"eval/{who}/feasible"), str):
        return message
    low, high = finite(metrics, f"eval/{who}/cost_ci_low"), finite(metrics, f"eval/{who}/cost_ci_high")
    limit = finite(metrics, "dual/c_limit")
    if low is None or high is None or limit is None:
        return None
    return "yes" if high <= limit else "no" if low > limit else "undecided"
