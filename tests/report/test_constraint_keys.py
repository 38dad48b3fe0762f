"""Metrics by constraint, such as `dual/<constraint>/lambda`, change nothing in a report that does not know them."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

from cdpo_lightning.report import build, load_run
from cdpo_lightning.report.figures.run_figures import pictures
from cdpo_lightning.report.formatting import evaluated_policies
from cdpo_lightning.report.sweep.load import load_sweep
from cdpo_lightning.report.sweep.page_data import page_data

BY_CONSTRAINT = {
    "dual/cost/lambda": 1.0,
    "dual/cost/c_limit": -0.3,
    "eval/cdpo/cost/value": -0.29,
    "eval/cdpo/cost/feasible": "yes",
    "exact/cost/lambda": 1.16,
    "exact/cdpo/cost/value": -0.3,
}


def _with_constraint_keys(folder: Path) -> Path:
    metrics = folder / "metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | BY_CONSTRAINT))
    history = folder / "history.csv"
    rows = list(csv.DictReader(io.StringIO(history.read_text(), newline="")))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0], "dual/cost/lambda", "dual/cost/violation"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "dual/cost/lambda": 0.5, "dual/cost/violation": 0.1} for row in rows)
    history.write_text(text.getvalue())
    return folder


def test_tables_and_figures_are_those_of_the_run_without_the_keys(tmp_path: Path, make_run: Callable) -> None:
    plain, extended = make_run(tmp_path / "a" / "run"), _with_constraint_keys(make_run(tmp_path / "b" / "run"))
    assert evaluated_policies(load_run(extended).metrics) == evaluated_policies(load_run(plain).metrics)
    pages = [build(folder) for folder in (plain, extended)]
    for name in ("table.md", "table.csv"):
        assert (pages[0].parent / name).read_text() == (pages[1].parent / name).read_text()
    assert pictures(load_run(extended)) == pictures(load_run(plain))
    text = pages[1].read_text(encoding="utf-8")
    assert all(key in text for key in BY_CONSTRAINT), "the list of all metrics has them"


def test_the_data_of_a_sweep_are_those_without_the_keys(tmp_path: Path, make_run: Callable) -> None:
    folders = [make_run(tmp_path / "a" / "run"), _with_constraint_keys(make_run(tmp_path / "b" / "run"))]
    plain, extended = (page_data(load_sweep([folder]), tmp_path, []) for folder in folders)
    assert plain == extended
