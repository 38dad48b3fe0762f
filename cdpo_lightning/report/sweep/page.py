"""Renders the page of a sweep, a single HTML file with the data and a script that draws them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from cdpo_lightning.report.formatting import INTERVALS
from cdpo_lightning.report.html import json_text, render_page
from cdpo_lightning.report.run.page import CONVENTION

RELOAD_SECONDS = 20  # of the page while jobs are running
_UNFINISHED = ("running", "waiting", "failed")


def render_sweep(title: str, data: Mapping[str, Any], live: bool) -> str:
    """Return the page as HTML.

    Args:
        title: of the page.
        data: the result of `page_data`.
        live: whether jobs are still running; the page then reloads itself.
    """
    counts = Counter(job["state"] for job in data["jobs"])
    return render_page(
        "sweep",
        title,
        ("base.css", "sweep.css"),
        runs=len(data["runs"]),
        job_counts={state: counts[state] for state in _UNFINISHED},
        reload_seconds=RELOAD_SECONDS if live else None,
        convention=CONVENTION,
        intervals=INTERVALS,
        data=json_text(data),
    )
