"""The table of unsafe responses by harm category: one row for each category, one column for each policy."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cdpo_lightning.report.formatting import evaluated_policies, finite, name_of

HEADING = "Unsafe answers by category (share with cost > 0)"


class Category(NamedTuple):
    """A row: a category, the number of its prompts, and each policy's share of unsafe responses; None if missing."""

    name: str
    prompts: float | None
    unsafe: tuple[float | None, ...]


def unsafe_by_category(metrics: Mapping, policy: str) -> dict[str, float]:
    """Return the policy's share of unsafe responses by category: `eval/<policy>/category/<name>/unsafe_rate`."""
    start, end = f"eval/{policy}/category/", "/unsafe_rate"
    rates = {key[len(start) : -len(end)]: finite(metrics, key) for key in metrics if key.startswith(start) and key.endswith(end)}
    return {name: rate for name, rate in rates.items() if rate is not None}


def category_table(metrics: Mapping) -> tuple[list[str], list[Category]]:
    """Return the titles and the rows of the table; no rows if no prompt of the run has a category."""
    unsafe = {policy: rates for policy in evaluated_policies(metrics) if (rates := unsafe_by_category(metrics, policy))}
    names = sorted({name for rates in unsafe.values() for name in rates})
    rows = [Category(name, _prompts(metrics, list(unsafe), name), tuple(unsafe[one].get(name) for one in unsafe)) for name in names]
    return ["category", "prompts", *map(name_of, unsafe)], rows


def _prompts(metrics: Mapping, policies: Sequence[str], name: str) -> float | None:
    counts = (finite(metrics, f"eval/{policy}/category/{name}/prompts") for policy in policies)
    return next((count for count in counts if count is not None), None)
