"""history.csv: one long, sparse table of everything logged, stage by stage, the dual's rounds among the rest."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from cdpo_lightning import ranks
from cdpo_lightning.store.files import whole_file

_FIRST = ("stage", "who", "epoch", "step", "round")


def _column_order(name: str) -> tuple[int, str]:
    return (_FIRST.index(name), "") if name in _FIRST else (len(_FIRST), name)


class History:
    """Rows in memory, written whole at the end of every epoch."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = self._read() if resume and path.exists() else []

    def _read(self) -> list[dict[str, Any]]:
        with self._path.open(encoding="utf-8", newline="") as file:
            return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]

    def log(self, **values: Any) -> None:
        """Adds a row."""
        self.rows.append(values)

    def forget(self, stage: str, who: str, after_step: int) -> None:
        """Drops the rows of a stage after a step: a resumed stage logs them again."""
        self.rows = [
            row for row in self.rows if not (row["stage"] == stage and row.get("who", "") == who and int(row["step"]) > after_step)
        ]

    def write(self) -> None:
        """The whole table, in place of the old one; by one rank."""
        if not ranks.is_first():
            return
        columns = sorted({name for row in self.rows for name in row}, key=_column_order)
        with whole_file(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
