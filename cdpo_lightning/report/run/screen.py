"""The run on a terminal: the final table, the verdict and one line per dual round."""

import re
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdpo_lightning.report.formatting import CONVENTION, MISSING, finite, fixed, name_of, percent, plus_minus, telling
from cdpo_lightning.report.run.verdict import verdict
from cdpo_lightning.report.tables.table import rows

__all__ = ["dual_round_line", "final_table", "say", "verdict"]
COLOURS = {"yes": "green", "no": "red", "undecided": "yellow"}
PLAIN = str.maketrans({"±": "+/-", "·": "-", "–": "-", "λ": "lambda"})


def final_table(metrics: Mapping, console: Console) -> None:
    """Print the compact table, at most 100 columns wide; nothing where nobody was evaluated."""
    everyone = rows(metrics)
    if not everyone:
        return
    exact = any(row["exact_kl_to_optimum"] is not None for row in everyone)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=_cell(CONVENTION, console),
        caption_justify="left",
    )
    for title in ("who", *_titles(exact)):
        table.add_column(_cell(title, console), justify="left" if title == "who" else "right", overflow="fold")
    for row in everyone:
        table.add_row(*(_cell(text, console) for text in _cells(row, exact)))
    console.print(table)


def _titles(exact: bool) -> tuple[str, ...]:
    return ("E[reward] ±", "E[cost] ±", "unsafe", "KL(ref)", "feasible", *(("KL to opt.", "support") if exact else ()))


def _cells(row: Mapping, exact: bool) -> list[str]:
    name = name_of(row["who"]).replace("lambda", "λ")
    shown = [name, _estimate(row, "reward"), _estimate(row, "cost"), percent(row["unsafe_rate"])]
    shown += [fixed(row["kl_to_reference"], 3), row["feasible"] or MISSING]
    return shown + ([fixed(row["exact_kl_to_optimum"], 3), percent(row["exact_support_mass"])] if exact else [])


def _estimate(row: Mapping, stem: str) -> str:
    if row["who"] == "optimum":
        return fixed(row[f"exact_expected_{stem}"])
    low, high = row[f"{stem}_ci_low"], row[f"{stem}_ci_high"]
    return plus_minus(row[f"{stem}_mean"], None if low is None or high is None else (high - low) / 2)


def _cell(text: str, console: Console) -> Text:
    return Text(_readable(text, console), style=COLOURS.get(text, ""))


def say(text: str, console: Console) -> None:
    """Print a line as it is: no markup read from it, and legible where the terminal cannot encode `±`."""
    console.print(Text(_readable(text, console)), soft_wrap=True)


def _readable(text: str, console: Console) -> str:
    return text if re.match("utf", console.encoding, re.IGNORECASE) else text.translate(PLAIN)


def dual_round_line(row: Mapping) -> str:
    """`round 07  lambda 1.162 -> 1.170   E[c] -0.31 ± 0.04 (limit -0.30)   flips 2.1 %   ESS 78.0 %`.

    Args:
        row: a dual round as logged; shares (`dual/label_flips`, `dual/effective_sample_size`) in [0, 1].
    """
    count = finite(row, "round")
    error = finite(row, "dual/expected_cost_se")
    cost = plus_minus(finite(row, "dual/expected_cost"), None if error is None else 1.96 * error)
    head = f"round {MISSING if count is None else f'{count:02.0f}'}  lambda {telling(finite(row, 'dual/lambda'), 3)}"
    parts = [f"{head} -> {telling(finite(row, 'dual/lambda_next'), 3)}", f"E[c] {cost}{_limit(row)}"]
    shares = (("flips", "dual/label_flips"), ("ESS", "dual/effective_sample_size"))
    return "   ".join(parts + [f"{word} {percent(share)}" for word, key in shares if (share := finite(row, key)) is not None])


def _limit(row: Mapping) -> str:
    cost, violation = finite(row, "dual/expected_cost"), finite(row, "dual/violation")
    limit = finite(row, "dual/c_limit")
    if limit is None and cost is not None and violation is not None:
        limit = cost - violation
    return "" if limit is None else f" (limit {telling(limit)})"
