"""The report over many runs: one page, the frontier as PNG, and the table as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdpo_lightning.errors import DataError
from cdpo_lightning.report.formatting import CONVENTION, MISSING, fixed, name_of, percent, telling
from cdpo_lightning.report.load import find_runs
from cdpo_lightning.report.sweep.data import page_data
from cdpo_lightning.report.sweep.figures import frontier_png
from cdpo_lightning.report.sweep.load import Sweep, load_sweep
from cdpo_lightning.report.sweep.page import render_sweep
from cdpo_lightning.report.write import write_bytes, write_text

_COLUMNS = ("lambda", "E[reward]", "E[cost]", "feasible", "unsafe", "CVaR90", "KL", "tokens")


def build_sweep(folders: Sequence[Path], target: Path, live: bool = False, only: Sequence[Path] | None = None) -> Path:
    """Writes the report over all runs in these folders into `target`; returns the page's path.

    Args:
        folders: runs, or folders that hold runs.
        target: where the report goes.
        only: the runs to show; else all that are found.
        live: the runs are still going on: the page alone, which loads itself anew.

    Raises:
        DataError: there is no run, or a file of one cannot be read.
        StorageError: the report cannot be written.
    """
    result = [path for folder in folders for path in find_runs(folder)] if only is None else only
    sweep = load_sweep(sorted({path.resolve(): path for path in result}.values(), key=_by_number))
    jobs = [job for folder in folders for job in _jobs(folder / "jobs.json")]
    title = " + ".join("/".join(folder.resolve().parts[-2:]).lstrip("/") for folder in folders)
    page = render_sweep(title, page_data(sweep, target, jobs), live)
    if not live:
        if sweep.points:
            write_bytes(target / "frontier.png", frontier_png(sweep))
        write_text(target / "table.md", to_markdown(sweep))
        write_text(target / "table.csv", to_csv(sweep))
    write_text(target / "index.html", page)
    return target / "index.html"


def _by_number(path: Path) -> tuple[str, int, str]:
    return str(path.parent), int(path.name) if path.name.isdigit() else -1, path.name


def _jobs(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["jobs"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the jobs of a sweep ({error}); remove it, or start the sweep again") from error


def to_markdown(sweep: Sweep) -> str:
    """One line for each run, its own policy; the convention above."""
    keys = [key.rpartition(".")[2] for key in sweep.keys]
    head = ["run", "method", *keys, *_COLUMNS]
    lines = [_line(head), _line([":--", ":--", *["--:"] * (len(head) - 2)])]
    lines += [_line(_cells(sweep, point)) for point in sweep.points if point["main"]]
    return f"{CONVENTION}; intervals are 95 %, clustered by prompt.\n\n![frontier](frontier.png)\n\n" + "\n".join(lines) + "\n"


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


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def to_csv(sweep: Sweep) -> str:
    """Everyone judged in every run, in full precision; an empty cell was not measured."""
    text = io.StringIO()
    text.write(f"# {CONVENTION}; intervals are 95 %, clustered by prompt\n")
    figures = ("feasible", "unsafe", "cvar", "kl", "tokens", "unfinished", "klOptimum")
    ends = ("mean", "ci_low", "ci_high")
    names = [f"{kind}_{end}" for kind in ("reward", "cost") for end in ends]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "who", *sweep.keys, "lambda", *names, *figures, "exact_cost", "exact_reward", "command"])
    for point in sweep.points:
        run = sweep.runs[point["run"]]
        values = [sweep.value(point["run"], key) for key in sweep.keys]
        row = [run.folder.name, point["who"], *values, run.metrics.get("dual/lambda") if point["main"] else None]
        row += [*point["reward"], *point["cost"], *(point[name] for name in figures), *point["exact"]]
        writer.writerow([*row, run.metrics.get("run/command")])
    return text.getvalue()
