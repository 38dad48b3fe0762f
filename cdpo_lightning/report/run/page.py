"""Renders the page of one run, a single HTML file."""

from collections.abc import Mapping

from cdpo_lightning.report.figures.run_figures import Picture
from cdpo_lightning.report.formatting import NOBODY_EVALUATED, finite
from cdpo_lightning.report.html import data_uri, render_page
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.run.page_content import page_samples, page_tables
from cdpo_lightning.report.run.verdict import tone, verdict
from cdpo_lightning.report.tables.export import to_csv
from cdpo_lightning.report.tables.results import caption

CONVENTION = "cost > 0 is harmful; E[c] <= C_limit"


def render(run: Run, pictures: Mapping[str, Picture]) -> str:
    """Return the page of the run as HTML, with all pictures except the wide one."""
    metrics = run.metrics
    return render_page(
        "run",
        run.name,
        ("base.css",),
        facts=_facts(metrics),
        command=metrics.get("run/command", ""),
        convention=CONVENTION,
        tone=tone(metrics),
        verdict=verdict(metrics),
        caption=caption(metrics),
        tables=page_tables(metrics),
        nobody=NOBODY_EVALUATED,
        csv=data_uri("text/csv;charset=utf-8", to_csv(metrics).encode(errors="replace")),
        figures=[
            {"source": data_uri("image/png", one.png), "alt": one.alt} for name, one in pictures.items() if name != "hero.png"
        ],
        samples=page_samples(run.samples),
        metrics=sorted(metrics.items()),
        config=run.config_text,
    )


def _facts(metrics: Mapping) -> list[str]:
    seconds, seed, commit = finite(metrics, "run/wall_seconds"), metrics.get("run/seed"), metrics.get("run/git_commit")
    facts = [
        None if seed is None else f"seed {seed}",
        None if seconds is None else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min",
        None if commit is None else f"commit {str(commit)[:10]}",
    ]
    return [fact for fact in facts if fact]
