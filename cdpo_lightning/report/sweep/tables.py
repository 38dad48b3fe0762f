"""The table of a sweep as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from cdpo_lightning.report.formatting import CONVENTION, INTERVALS, MISSING, fixed, name_of, percent, telling
from cdpo_lightning.report.sweep.load import Sweep
from cdpo_lightning.report.tables.export import markdown_table

_COLUMNS = ("lambda", "E[reward]", "E[cost]", "feasible", "unsafe", "CVaR90", "KL", "tokens")
_MEASURES = ("feasible", "unsafe", "cvar", "kl", "tokens", "unfinished", "klOptimum")  # keys of a point


def to_markdown(sweep: Sweep) -> str:
    """Return the sign convention, the figure and a table with one row for the main policy of each run, as Markdown."""
    head = ["run", "method", *(key.rpartition(".")[2] for key in sweep.keys), *_COLUMNS]
    rule = [":--", ":--", *["--:"] * (len(head) - 2)]
    body = [_cells(sweep, point) for point in sweep.points if point["main"]]
    return f"{CONVENTION}; {INTERVALS}.\n\n![frontier](frontier.png)\n\n{markdown_table([head, rule, *body])}\n"


def _cells(sweep: Sweep, point: Mapping[str, Any]) -> list[str]:
    run = sweep.runs[point["run"]]
    lam = run.metrics.get("dual/lambda")
    return [
        run.folder.name,
        name_of(point["who"]),
        *(str(sweep.value(point["run"], key)) for key in sweep.keys),
        telling(lam) if isinstance(lam, float) else MISSING,
        *(_interval(point[kind]) for kind in ("reward", "cost")),
        point["feasible"] or MISSING,
        percent(point["unsafe"]),
        fixed(point["cvar"]),
        fixed(point["kl"], 3),
        fixed(point["tokens"], 1),
    ]


def _interval(ends: Sequence[float | None]) -> str:
    mean, low, high = ends
    return fixed(mean) if low is None or high is None else f"{fixed(mean)} [{fixed(low)}, {fixed(high)}]"


def to_csv(sweep: Sweep) -> str:
    """Return one row for every evaluated policy of every run, in full precision, as CSV; missing values are empty."""
    text = io.StringIO()
    text.write(f"# {CONVENTION}; {INTERVALS}\n")
    means = [f"{kind}_{end}" for kind in ("reward", "cost") for end in ("mean", "ci_low", "ci_high")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "who", *sweep.keys, "lambda", *means, *_MEASURES, "exact_cost", "exact_reward", "command"])
    writer.writerows(_csv_row(sweep, point) for point in sweep.points)
    return text.getvalue()


def _csv_row(sweep: Sweep, point: Mapping[str, Any]) -> list[Any]:
    run = sweep.runs[point["run"]]
    return [
        run.folder.name,
        point["who"],
        *(sweep.value(point["run"], key) for key in sweep.keys),
        run.metrics.get("dual/lambda") if point["main"] else None,
        *point["reward"],
        *point["cost"],
        *(point[name] for name in _MEASURES),
        *point["exact"],
        run.metrics.get("run/command"),
    ]
