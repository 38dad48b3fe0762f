"""Writes the HTML page of a sweep each time jobs end, to show the progress."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cdpo_lightning.errors import CDPOError
from cdpo_lightning.report.sweep.report_files import build_sweep

_MAX_SHARE = 0.05  # largest share of a running sweep's time for writing its page


class LivePage:
    """Writes `report/` in the folder of the sweep; during the sweep only the page, and not too often (`_MAX_SHARE`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0.0

    def write(self, final: bool = False) -> None:
        """Write the page of the jobs that have ended. If that fails, print a note and go on."""
        start = time.monotonic()
        if start < self._next and not final:
            return
        if not any(self._folder.glob("*/metrics.json")):
            return  # no job is done, or the jobs have a run_dir outside this folder
        try:
            build_sweep([self._folder], self._folder / "report", live=not final)
        except CDPOError as error:
            print(f"note: the page of the sweep was not written: {error}", file=sys.stderr, flush=True)
        self._next = time.monotonic() + (time.monotonic() - start) / _MAX_SHARE
