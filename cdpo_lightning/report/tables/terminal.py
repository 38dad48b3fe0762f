"""Prints the results of a run on a terminal: the final table, one line for each dual round, and lines of text."""

import re
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdpo_lightning.config.methods import OPTIMUM
from cdpo_lightning.report.formatting import (
    CONVENTION,
    MISSING,
    finite,
    fixed,
    half_width,
    implied_limit,
    name_of,
    percent,
    plus_minus,
    telling,
)
from cdpo_lightning.report.tables.results import result_rows

COLOURS = {"yes": "green", "no": "red", "undecided": "yellow"}  # of the column `feasible`
ASCII = str.maketrans({"±": "+/-", "·": "-", "–": "-", "λ": "lambda"})


def final_table(metrics: Mapping, console: Console) -> None:
    """Print the compact table of results, at most 100 columns wide; print nothing if no policy was evaluated."""
    rows = result_rows(metrics)
    if not rows:
        return
    exact = any(row["exact_kl_to_optimum"] is not None for row in rows)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=_cell(CONVENTION, console),
        caption_justify="left",
    )
    for title in ("who", *_titles(exact)):
        table.add_column(_cell(title, console), justify="left" if title == "who" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(text, console) for text in _cells(row, exact)))
    console.print(table)


def _titles(exact: bool) -> tuple[str, ...]:
    return ("E[reward] ±", "E[cost] ±", "unsafe", "KL(ref)", "feasible", *(("KL to opt.", "support") if exact else ()))


def _cells(row: Mapping, exact: bool) -> list[str]:
    name = name_of(row["who"]).replace("lambda", "λ")
    cells = [name, _estimate(row, "reward"), _estimate(row, "cost"), percent(row["unsafe_rate"])]
    cells += [fixed(row["kl_to_reference"], 3), row["feasible"] or MISSING]
    return cells + ([fixed(row["exact_kl_to_optimum"], 3), percent(row["exact_support_mass"])] if exact else [])


def _estimate(row: Mapping, stem: str) -> str:
    if row["who"] == OPTIMUM:
        return fixed(row[f"exact_expected_{stem}"])
    return plus_minus(row[f"{stem}_mean"], half_width(row, stem))


def _cell(text: str, console: Console) -> Text:
    return Text(_encodable(text, console), style=COLOURS.get(text, ""))


def say(text: str, console: Console) -> None:
    """Print a line without reading markup from it; symbols that the terminal cannot encode are spelled out."""
    console.print(Text(_encodable(text, console)), soft_wrap=True)


def _encodable(text: str, console: Console) -> str:
    return text if re.match("utf", console.encoding, re.IGNORECASE) else text.translate(ASCII)


def dual_round_line(row: Mapping) -> str:
    """Return `round 07  lambda 1.162 -> 1.170   E[c] -0.31 ± 0.04 (limit -0.30)   flips 2.1 %   ESS 78.0 %`.

    Args:
        row: a dual round of history.csv; shares (`dual/label_flips`, `dual/effective_sample_size`) in [0, 1].
    """
    count = finite(row, "round")
    error = finite(row, "dual/expected_cost_se")
    cost = plus_minus(finite(row, "dual/expected_cost"), None if error is None else 1.96 * error)
    head = f"round {MISSING if count is None else f'{count:02.0f}'}  lambda {telling(finite(row, 'dual/lambda'), 3)}"
    parts = [f"{head} -> {telling(finite(row, 'dual/lambda_next'), 3)}", f"E[c] {cost}{_limit(row)}"]
    shares = (("flips", "dual/label_flips"), ("ESS", "dual/effective_sample_size"))
    return "   ".join(parts + [f"{word} {percent(share)}" for word, key in shares if (share := finite(row, key)) is not None])


def _limit(row: Mapping) -> str:
    limit = finite(row, "dual/c_limit")
    limit = implied_limit(row) if limit is None else limit
    return "" if limit is None else f" (limit {telling(limit)})"
