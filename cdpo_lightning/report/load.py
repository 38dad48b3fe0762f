"""Reads the folder of a finished run, in which every file except metrics.json is optional."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdpo_lightning.errors import DataError

SKIPPED_FOLDERS = {"artifacts", "checkpoints", "export", "report", "wandb"}


@dataclass(frozen=True)
class Run:
    """The files of a finished run.

    Attributes:
        folder: of the run.
        metrics: metrics.json, flat.
        rounds: the dual rounds of history.csv in order; an empty cell is a missing key.
        samples: samples.jsonl, one mapping per line.
        config_text: the text of config.yaml, "" without one.
        frontier: (lambda, E[c], E[r]) of the exact pi*_lambda, by lambda; empty outside the closed-form world.
    """

    folder: Path
    metrics: Mapping
    rounds: tuple[Mapping, ...] = ()
    samples: tuple[Mapping, ...] = ()
    config_text: str = ""
    frontier: tuple[tuple[float, float, float], ...] = ()

    @property
    def name(self) -> str:
        """Return the last two parts of the folder: `<name>/<time>`."""
        return "/".join(self.folder.resolve().parts[-2:]).lstrip("/")


def load_run(folder: str | Path) -> Run:
    """Load the run in this folder.

    Raises:
        DataError: it is not the folder of a run, or a file in it cannot be read.
    """
    folder = Path(folder)
    return replace(load_summary(folder), samples=_samples(folder / "samples.jsonl"))


def load_summary(folder: str | Path) -> Run:
    """Load the run in this folder without its samples, for a page over many runs.

    Raises:
        DataError: it is not the folder of a run, or a file in it cannot be read.
    """
    folder = Path(folder)
    rounds, frontier = _rounds(folder / "history.csv"), _frontier(folder / "frontier.csv")
    return Run(folder, load_metrics(folder), rounds, (), _text(folder / "config.yaml"), frontier)


def find_runs(folder: str | Path) -> list[Path]:
    """Return the folder itself if it is a run, else every run below it, by path.

    Raises:
        DataError: there is none.
    """
    folder = Path(folder)
    if (folder / "metrics.json").is_file():
        return [folder]
    runs = {path.parent.resolve(): path.parent for path in sorted(folder.rglob("metrics.json")) if _is_run(path, folder)}
    if not runs:
        raise DataError(f"{folder}: no metrics.json here or below; give the folder of a finished run or of a sweep")
    return sorted(runs.values())


def _is_run(path: Path, top: Path) -> bool:
    return path.is_file() and not SKIPPED_FOLDERS & set(path.relative_to(top).parts)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); allow reading it, or restore it") from error


def load_metrics(folder: Path) -> Mapping:
    """Return the metrics.json of the run in this folder, without null values.

    Raises:
        DataError: there is no metrics.json, or it cannot be read.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise DataError(f"{path.parent}: not the folder of a run, it has no metrics.json; give the folder of a finished run")
    metrics = _json(_text(path), str(path))
    if not isinstance(metrics, dict):
        raise DataError(f"{path}: expected an object of names and values, got {type(metrics).__name__}; run it again")
    return {key: value for key, value in metrics.items() if value is not None}


def _json(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{location}: not JSON ({error}); the run may have been cut off, run it again") from error


def _samples(path: Path) -> tuple[Mapping, ...]:
    lines = enumerate(_text(path).split("\n"), start=1)
    return tuple(_sample(line, f"{path}, line {at}") for at, line in lines if line.strip())


def _sample(line: str, location: str) -> Mapping:
    sample = _json(line, location)
    if not isinstance(sample, dict) or not {"prompt", "response"} <= sample.keys():
        raise DataError(f"{location}: expected an object with prompt and response, got {line[:60]!r}; run it again")
    return sample


def _csv_rows(path: Path) -> list[dict]:
    csv.field_size_limit(2**31 - 1)
    try:
        return list(csv.DictReader(io.StringIO(_text(path), newline="")))
    except csv.Error as error:
        raise DataError(f"{path}: expected a CSV table ({error}); run it again") from error


def _rounds(path: Path) -> tuple[Mapping, ...]:
    # A resumed run repeats the rounds after its checkpoint: the last row of (who, round) is the valid one.
    rows = [_values(row) for row in _csv_rows(path) if (row.get("round") or "").strip()]
    for row in rows:
        if not _is_finite(row["round"]):
            raise DataError(
                f"{path}: expected a number in every filled cell of the column round, got {row['round']!r}; run it again"
            )
    latest = {(row.get("who", ""), row["round"]): row for row in rows}
    return tuple(latest[key] for key in sorted(latest))


def _values(row: Mapping) -> dict:
    filled = {key: value.strip() for key, value in row.items() if isinstance(value, str) and value.strip()}
    return {key: value if key in ("who", "stage") else _number_or_text(value) for key, value in filled.items()}


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _is_finite(value: float | str) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _frontier(path: Path) -> tuple[tuple[float, float, float], ...]:
    columns = ("lambda", "expected_cost", "expected_reward")
    rows = [[_number_or_text(row.get(column) or "") for column in columns] for row in _csv_rows(path)]
    if not all(_is_finite(cell) for row in rows for cell in row):
        raise DataError(f"{path}: expected the columns {', '.join(columns)} with a finite number in every cell; run it again")
    return tuple(sorted((float(lam), float(cost), float(reward)) for lam, cost, reward in rows))
