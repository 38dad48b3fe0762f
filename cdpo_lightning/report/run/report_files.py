"""Writes the report of one run to `report/` in its folder. All files are made before the first is written, in case one fails."""

from pathlib import Path

from cdpo_lightning.report.figures.run_figures import pictures
from cdpo_lightning.report.load import Run, load_run
from cdpo_lightning.report.run.page import render
from cdpo_lightning.report.tables.export import write_csv, write_markdown
from cdpo_lightning.store.files import write_bytes, write_text

PICTURES = ("dual_rounds.png", "reward_cost.png", "hero.png")


def build(folder: str | Path) -> Path:
    """Write `report/` in the run's folder and return the path of its page.

    Raises:
        DataError: the folder is not a run's, or a file in it cannot be read.
        StorageError: the report cannot be written.
    """
    return _write(load_run(folder))


def _write(run: Run) -> Path:
    drawn = pictures(run)
    page, target = render(run, drawn), run.folder / "report"
    for name in PICTURES:
        if name in drawn:
            write_bytes(target / name, drawn[name].png)
        else:
            (target / name).unlink(missing_ok=True)  # of an earlier report
    write_markdown(run, target / "table.md")
    write_csv(run, target / "table.csv")
    write_text(target / "index.html", page)
    return target / "index.html"
