"""history.csv: one table with the logged training steps and dual rounds of all stages; a value that was not logged is empty."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from cdpo_lightning import ranks
from cdpo_lightning.store.files import atomic_file

_FIRST = ("stage", "who", "epoch", "step", "round")


def _column_order(name: str) -> tuple[int, str]:
    return (_FIRST.index(name), "") if name in _FIRST else (len(_FIRST), name)


class History:
    """Collects the rows in memory and writes the whole table at the end of every epoch."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = self._read() if resume and path.exists() else []

    def _read(self) -> list[dict[str, Any]]:
        with self._path.open(encoding="utf-8", newline="") as file:
            return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]

    def log(self, **values: Any) -> None:
        """Add a row."""
        self.rows.append(values)

    def forget(self, stage: str, who: str, after_step: int) -> None:
        """Remove the rows of a stage after a step, because a resumed stage logs them again."""
        self.rows = [
            row for row in self.rows if not (row["stage"] == stage and row.get("who", "") == who and int(row["step"]) > after_step)
        ]

    def write(self) -> None:
        """Replace the file by the current table; only rank 0 writes."""
        if not ranks.is_first():
            return
        columns = sorted({name for row in self.rows for name in row}, key=_column_order)
        with atomic_file(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
