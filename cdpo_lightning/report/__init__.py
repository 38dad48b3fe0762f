"""A run's folder in, tables, figures and one HTML page out."""

from cdpo_lightning.report.load import Run, find_runs, load_run
from cdpo_lightning.report.run.build import build
from cdpo_lightning.report.run.screen import dual_round_line, final_table, say, verdict
from cdpo_lightning.report.tables.table import rows

__all__ = ["Run", "build", "dual_round_line", "final_table", "find_runs", "load_run", "rows", "say", "verdict"]
