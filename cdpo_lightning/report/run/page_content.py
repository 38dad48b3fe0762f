"""The tables and the samples of a run's page, as plain values for its template."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cdpo_lightning.report.formatting import finite, fixed, in_table_order, name_of, percent
from cdpo_lightning.report.tables.categories import HEADING, Category, category_table
from cdpo_lightning.report.tables.columns import Column
from cdpo_lightning.report.tables.results import ResultTable, cell_text, result_tables

SHOWN_PROMPTS = 24
SHOWN_RESPONSES = 3  # of one policy to one prompt


class Cell(NamedTuple):
    """A cell of a table: its text, the value to sort by ("" if missing) and its CSS class."""

    text: str
    value: object
    style: str = ""


class PageTable(NamedTuple):
    """A sortable table; the first cell of each row is the row's heading."""

    heading: str
    titles: list[str]
    rows: list[list[Cell]]


def page_tables(metrics: Mapping) -> list[PageTable]:
    """Return the tables of results, and the table by harm category if the run has one."""
    tables = [_result_table(table) for table in result_tables(metrics)]
    titles, categories = category_table(metrics)
    return tables + ([PageTable(HEADING, titles, [_category_cells(row) for row in categories])] if categories else [])


def _result_table(table: ResultTable) -> PageTable:
    # The first column sorts by position in the table: its own order tells more than the alphabet.
    rows = [
        [Cell(name_of(row["who"]), at), *(_result_cell(row, column) for column in table.columns)]
        for at, row in enumerate(table.rows)
    ]
    return PageTable(table.heading, ["who", *(column.title for column in table.columns)], rows)


def _result_cell(row: Mapping, column: Column) -> Cell:
    value = row[column.field]
    return Cell(cell_text(row, column), _sort_value(value), f"text {value}" if column.kind == "text" else "")


def _category_cells(row: Category) -> list[Cell]:
    shares = [Cell(percent(share), _sort_value(share)) for share in row.unsafe]
    return [Cell(row.name, row.name), Cell(fixed(row.prompts, 0), _sort_value(row.prompts)), *shares]


def _sort_value(value: object) -> object:
    return "" if value is None else value


def page_samples(samples: Sequence[Mapping]) -> dict[str, Any]:
    """Return the first responses by prompt and policy, prompts with responses of the most policies first."""
    groups: dict[str, dict[str, list[Mapping]]] = {}
    for sample in samples:
        groups.setdefault(str(sample["prompt"]), {}).setdefault(str(sample.get("who", "")), []).append(sample)
    shown = sorted(groups.items(), key=lambda item: -len(item[1]))[:SHOWN_PROMPTS]
    prompts = [{"prompt": prompt, "columns": _columns(by_policy)} for prompt, by_policy in shown]
    return {"prompts": prompts, "total": len(groups), "most": SHOWN_RESPONSES}


def _columns(by_policy: Mapping[str, Sequence[Mapping]]) -> list[dict[str, Any]]:
    return [
        {"title": name_of(policy), "responses": [_response(sample) for sample in by_policy[policy][:SHOWN_RESPONSES]]}
        for policy in in_table_order(by_policy)
    ]


def _response(sample: Mapping) -> dict[str, Any]:
    reward, cost = finite(sample, "reward"), finite(sample, "cost")
    unsafe = None if cost is None else cost > 0
    return {"text": sample["response"], "reward": fixed(reward), "cost": fixed(cost), "unsafe": unsafe}
