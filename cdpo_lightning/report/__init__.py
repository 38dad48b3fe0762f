"""Makes tables, figures and one HTML page from the folder of a run or of a sweep."""

from cdpo_lightning.report.load import Run, find_runs, load_run
from cdpo_lightning.report.run.report_files import build
from cdpo_lightning.report.run.verdict import verdict
from cdpo_lightning.report.tables.results import result_rows
from cdpo_lightning.report.tables.terminal import dual_round_line, final_table, say

__all__ = ["Run", "build", "dual_round_line", "final_table", "find_runs", "load_run", "result_rows", "say", "verdict"]
