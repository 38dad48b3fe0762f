"""The results of a run: one row with every metric for each policy, and the tables that pages and Markdown show."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cdpo_lightning.config.methods import OPTIMUM
from cdpo_lightning.report.formatting import (
    CONVENTION,
    INTERVALS,
    MISSING,
    evaluated_policies,
    feasible,
    finite,
    fixed,
    number,
    percent,
    telling,
)
from cdpo_lightning.report.tables.columns import (
    BUDGET_KEYS,
    EVAL_KEYS,
    EXACT_KEYS,
    FIELDS,
    SAMPLED,
    TABLES,
    TRUTH_KEYS,
    Column,
)


class ResultTable(NamedTuple):
    """A table: its heading, its columns, and its rows, in the form of `result_rows`."""

    heading: str
    columns: tuple[Column, ...]
    rows: list[Mapping]


def result_rows(metrics: Mapping) -> list[dict]:
    """Return one row with the keys `FIELDS` for each evaluated policy, and one for the exact optimum; missing values are None."""
    rows = [_row(metrics, policy) for policy in evaluated_policies(metrics)]
    optimum = _fields(metrics, "exact", "exact_", TRUTH_KEYS)
    if any(value is not None for value in optimum.values()):
        rows.append({**dict.fromkeys(FIELDS), "who": OPTIMUM, **optimum})
    return rows


def _row(metrics: Mapping, policy: str) -> dict:
    return {
        "who": policy,
        **_fields(metrics, f"eval/{policy}", "", EVAL_KEYS),
        "feasible": feasible(metrics, policy),
        **_fields(metrics, f"exact/{policy}", "exact_", EXACT_KEYS),
        **_fields(metrics, f"truth/{policy}", "truth_", TRUTH_KEYS),
        **_fields(metrics, f"budget/{policy}", "budget_", BUDGET_KEYS),
    }


def _fields(metrics: Mapping, group: str, prefix: str, keys: Sequence[str]) -> dict[str, float | None]:
    return {f"{prefix}{key}": number(metrics, f"{group}/{key}") for key in keys}


def cell_text(row: Mapping, column: Column) -> str:
    """Return the text of the row's cell in this column."""
    value = row[column.field]
    if column.kind == "text":
        return MISSING if value is None else str(value)
    if column.kind == "percent":
        return percent(value)
    if column.kind == "count":
        return MISSING if value is None else f"{value:,.0f}"
    text = fixed(value, {"fine": 3, "coarse": 1}.get(column.kind, 2))
    return text + _interval(row, column.field) if column.kind == "interval" else text


def _interval(row: Mapping, field: str) -> str:
    low, high = (row.get(field.removesuffix("_mean") + end) for end in ("_ci_low", "_ci_high"))
    return "" if None in (row[field], low, high) else f" [{fixed(low)}, {fixed(high)}]"


def result_tables(metrics: Mapping) -> list[ResultTable]:
    """Return the tables that have a value, without the columns and rows that have none."""
    rows = result_rows(metrics)
    tables = [ResultTable(heading, *_filled(columns, rows)) for heading, columns in TABLES]
    return [table for table in tables if table.columns]


def _filled(columns: tuple[Column, ...], rows: Sequence[Mapping]) -> tuple[tuple[Column, ...], list[Mapping]]:
    kept = tuple(column for column in columns if any(row[column.field] is not None for row in rows))
    # The table of samples keeps all its columns, with a dash for a missing value; of the others most runs fill only some.
    kept = columns if kept and columns is SAMPLED else kept
    return kept, [row for row in rows if any(row[column.field] is not None for column in kept)]


def caption(metrics: Mapping) -> str:
    """Return the caption: the sign convention, the limit, the kind of intervals and the number of samples."""
    limit = finite(metrics, "dual/c_limit")
    convention = CONVENTION + (f" = {telling(limit)}" if limit is not None else "")
    return "; ".join([convention, INTERVALS, _sizes(metrics)]) + "."


def _sizes(metrics: Mapping) -> str:
    prompts, samples = (_span(metrics, key) for key in ("prompts", "samples"))
    if not prompts or not samples:
        return "the sampling size was not recorded"
    return f"{samples} sampled responses to {prompts} prompts for each row"


def _span(metrics: Mapping, key: str) -> str:
    """Return the range of the policies' sizes as text, or the one size if they are equal."""
    sizes = [size for policy in evaluated_policies(metrics) if (size := finite(metrics, f"eval/{policy}/{key}")) is not None]
    return " to ".join(f"{size:.0f}" for size in sorted({min(sizes), max(sizes)})) if sizes else ""
