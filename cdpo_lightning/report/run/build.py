"""All of a run's report, made first and written afterwards: a failure leaves the old report as it was."""

from pathlib import Path

from cdpo_lightning.report.figures.figures import pictures
from cdpo_lightning.report.load import Run, load_run
from cdpo_lightning.report.run.page import render
from cdpo_lightning.report.tables.table import write_csv, write_markdown
from cdpo_lightning.report.write import write_bytes, write_text

PICTURES = ("dual_rounds.png", "reward_cost.png", "hero.png")


def build(folder: str | Path) -> Path:
    """Write `report/` in the run's folder; returns the page's path.

    Raises:
        DataError: the folder is not a run's, or a file in it cannot be read.
        StorageError: the report cannot be written.
    """
    return _write(load_run(folder))


def _write(run: Run) -> Path:
    made = pictures(run)
    page, target = render(run, made), run.folder / "report"
    for name in PICTURES:
        if name in made:
            write_bytes(target / name, made[name].png)
        else:
            (target / name).unlink(missing_ok=True)  # of an earlier build; this run has no such figures
    write_markdown(run, target / "table.md")
    write_csv(run, target / "table.csv")
    write_text(target / "index.html", page)
    return target / "index.html"
