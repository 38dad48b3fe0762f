"""Writes the tables of results as Markdown and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from cdpo_lightning.report.formatting import NOBODY_EVALUATED, fixed, name_of, percent
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.tables.categories import HEADING, category_table
from cdpo_lightning.report.tables.columns import FIELDS
from cdpo_lightning.report.tables.results import ResultTable, caption, cell_text, result_rows, result_tables
from cdpo_lightning.store.files import write_text


def to_markdown(metrics: Mapping) -> str:
    """Return the caption and the tables as GitHub-flavoured Markdown."""
    parts = [_result_table(table) for table in result_tables(metrics)] + _category_table(metrics)
    return "\n\n".join([caption(metrics), *(parts or [NOBODY_EVALUATED])]) + "\n"


def _result_table(table: ResultTable) -> str:
    head = ["who", *(column.title for column in table.columns)]
    rule = [":--", *(":-:" if column.kind == "text" else "--:" for column in table.columns)]
    body = [[name_of(row["who"]), *(cell_text(row, column) for column in table.columns)] for row in table.rows]
    return f"**{table.heading}**\n\n{markdown_table([head, rule, *body])}"


def _category_table(metrics: Mapping) -> list[str]:
    titles, categories = category_table(metrics)
    if not categories:
        return []
    rule = [":--", *["--:"] * (len(titles) - 1)]
    body = [[row.name, fixed(row.prompts, 0), *map(percent, row.unsafe)] for row in categories]
    return [f"**{HEADING}**\n\n{markdown_table([titles, rule, *body])}"]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as a Markdown table; the second row is the rule. `|` is escaped and line breaks become spaces."""
    cleaned = ([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cleaned)


def to_csv(metrics: Mapping) -> str:
    """Return the results as CSV: a comment line with the caption, then `FIELDS` in full precision; missing values are empty."""
    text = io.StringIO()
    text.write(f"# {caption(metrics)}\n")
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result_rows(metrics))
    return text.getvalue()


def write_markdown(run: Run, path: Path) -> None:
    """Write the run's tables to `path` as Markdown."""
    write_text(path, to_markdown(run.metrics))


def write_csv(run: Run, path: Path) -> None:
    """Write the run's results to `path` as CSV."""
    write_text(path, to_csv(run.metrics))
