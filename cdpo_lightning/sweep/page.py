"""The sweep's page, made anew as jobs end: one can look while it runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cdpo_lightning.errors import CDPOError
from cdpo_lightning.report.sweep.report_files import build_sweep

_SHARE = 0.05  # of the sweep's time that may go into its page while it runs


class LivePage:
    """Writes `report/` in the sweep's folder, while it runs the page alone and only so often that it costs little."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0.0

    def write(self, final: bool = False) -> None:
        """The page of what has ended so far; a page that cannot be made costs no job, and is said."""
        start = time.monotonic()
        if start < self._next and not final:
            return
        if not any(self._folder.glob("*/metrics.json")):
            return  # nothing to show, or not here: jobs with a run_dir of their own have their pages there
        try:
            build_sweep([self._folder], self._folder / "report", live=not final)
        except CDPOError as error:
            print(f"note: no page of the sweep: {error}", file=sys.stderr, flush=True)
        self._next = time.monotonic() + (time.monotonic() - start) / _SHARE
