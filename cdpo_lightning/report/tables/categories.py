"""The share of unsafe answers by harm category, one row a category and one column a method."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cdpo_lightning.report.formatting import finite, name_of, whos

HEADING = "Unsafe answers by category (share with cost > 0)"


class Category(NamedTuple):
    """A row: its prompts, the same ones for every method, and each method's share, None where it was not measured."""

    name: str
    prompts: float | None
    unsafe: tuple[float | None, ...]


def unsafe_by_category(metrics: Mapping, who: str) -> dict[str, float]:
    """What the run measured of one method: `eval/<who>/category/<name>/unsafe_rate`."""
    start, end = f"eval/{who}/category/", "/unsafe_rate"
    named = {key[len(start) : -len(end)]: finite(metrics, key) for key in metrics if key.startswith(start) and key.endswith(end)}
    return {name: value for name, value in named.items() if value is not None}


def category_table(metrics: Mapping) -> tuple[list[str], list[Category]]:
    """The titles and the rows; none where no prompt of the run has a category."""
    result = {who: named for who in whos(metrics) if (named := unsafe_by_category(metrics, who))}
    names = sorted({name for named in result.values() for name in named})
    rows = [Category(name, _prompts(metrics, list(result), name), tuple(result[who].get(name) for who in result)) for name in names]
    return ["category", "prompts", *map(name_of, result)], rows


def _prompts(metrics: Mapping, shown: Sequence[str], name: str) -> float | None:
    counts = (finite(metrics, f"eval/{who}/category/{name}/prompts") for who in shown)
    return next((count for count in counts if count is not None), None)
