"""Writes the report of a sweep: one page, the frontier as PNG, and the table as Markdown and CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdpo_lightning.errors import DataError
from cdpo_lightning.report.load import find_runs
from cdpo_lightning.report.sweep.frontier_figure import frontier_png
from cdpo_lightning.report.sweep.load import load_sweep
from cdpo_lightning.report.sweep.page import render_sweep
from cdpo_lightning.report.sweep.page_data import page_data
from cdpo_lightning.report.sweep.tables import to_csv, to_markdown
from cdpo_lightning.store.files import write_bytes, write_text


def build_sweep(folders: Sequence[Path], target: Path, live: bool = False, only: Sequence[Path] | None = None) -> Path:
    """Write the report over all runs in these folders into `target` and return the path of its page.

    Args:
        folders: runs, or folders that hold runs.
        target: the folder to write to.
        live: whether jobs are still running: then only the page is written, and it reloads itself.
        only: the runs to show; None: all runs in the folders.

    Raises:
        DataError: there is no run, or a file of one cannot be read.
        StorageError: the report cannot be written.
    """
    runs = [path for folder in folders for path in find_runs(folder)] if only is None else only
    sweep = load_sweep(sorted({path.resolve(): path for path in runs}.values(), key=_by_number))
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
        raise DataError(f"{path}: expected the jobs of a sweep ({error}); remove it, or start the sweep again") from error
