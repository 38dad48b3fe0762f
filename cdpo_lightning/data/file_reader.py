"""Reads the files of a run: renames their columns, and leaves out and counts the rows that cannot be used."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cdpo_lightning.data.reading.rows import SourceRow, is_unpinned, read_rows
from cdpo_lightning.data.reading.unusable import UnusableRow, UnusableRows
from cdpo_lightning.data.source_registry import Source, fitting_source, notice_line
from cdpo_lightning.errors import ConfigError, DataError
from cdpo_lightning.registry import Registry

AnySource = TypeVar("AnySource", bound=Source[Any])
R = TypeVar("R")


class FileReader:
    """Reads one file after another and keeps what the run says about them.

    Args:
        on_unusable: `error` or `drop`: what follows from a row that no record can be made of.
        columns: {column of a source: column of the files}.
        revision: of hub names without their own.
    """

    def __init__(self, on_unusable: str = "error", columns: Mapping[str, str] | None = None, revision: str | None = None) -> None:
        self._policy, self._columns, self._revision = on_unusable, dict(columns or {}), revision
        self._read_columns: set[str] = set()  # of all files
        self._counts: Counter[str] = Counter()  # unusable rows by reason
        self._notices: list[str] = []
        self._unpinned: list[str] = []
        self._dropped: list[str] = []

    @property
    def metrics(self) -> dict[str, int]:
        """Return the number of unusable rows of all files, as `data/unusable/<reason>`."""
        return {f"data/unusable/{reason}": count for reason, count in sorted(self._counts.items())}

    @property
    def notices(self) -> list[str]:
        """Return the notice of each source, then a warning for each hub name without a revision, then what was left out."""
        return list(dict.fromkeys([*self._notices, *self._unpinned, *self._dropped]))

    def read(
        self, path: str, registry: Registry[type[AnySource]], name: str, split: str = "train", *, fixed: bool = False
    ) -> tuple[AnySource, list[SourceRow]]:
        """Return the source of a file, and the rows that it can make records of.

        The source is `name`, or, unless that is `fixed`, the one whose columns the file has.

        Raises:
            ConfigError: the registry has no source `name`; the file has not been read then.
            DataError: the file cannot be read, none of its rows can be used, or the first that cannot is an error.
        """
        source = registry[name]()
        unusable = UnusableRows(self._policy)
        rows = self._renamed(read_rows(path, split, self._revision, unusable=unusable))
        if not fixed:
            name = fitting_source(registry, name, rows)
            source = registry[name]()
        if self._policy == "drop":
            rows = _usable(source, rows, unusable)
        if not rows:
            raise DataError(f"{path}: {unusable.summary()}; none is left")
        self._note(path, notice_line(registry, name), unusable)
        return source, rows

    def published(self, path: str, registry: Registry[type[Source[R]]], name: str) -> list[R]:
        """Return the records of a file that only the evaluation reads; its columns are the published ones and are not renamed.

        Raises:
            DataError: as `read`.
        """
        plain = FileReader(self._policy)
        source, rows = plain.read(path, registry, name, fixed=True)
        self._counts += plain._counts
        self._notices += plain._notices
        self._dropped += plain._dropped
        return source.records(rows)

    def require_columns(self) -> None:
        """Check that every column that was to be renamed is in a file.

        Raises:
            ConfigError: one is in none of the files.
        """
        for ours, theirs in self._columns.items():
            if theirs not in self._read_columns:
                has = ", ".join(sorted(self._read_columns))
                raise ConfigError(f"dataset.columns.{ours}={theirs}: no file has this column, expected one of {has}; correct it")

    def _renamed(self, rows: list[SourceRow]) -> list[SourceRow]:
        if not self._columns:
            return rows
        self._read_columns.update(name for row in rows for name in row.columns)
        return [SourceRow(row.location, _rename(row.columns, self._columns)) for row in rows]

    def _note(self, path: str, notice: str, unusable: UnusableRows) -> None:
        self._counts += unusable.counts
        self._notices.append(notice)
        if is_unpinned(path, self._revision):
            address = path.partition("%")[0]
            self._unpinned.append(f"{path}: the newest revision, which may change; pin it as {address}@REVISION")
        if unusable.counts:
            self._dropped.append(f"{path}: {unusable.summary()}")


def _rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row with the columns of the sources in place of those of the file, where it has them."""
    new = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    moved = {columns[ours] for ours in new}
    return {name: content for name, content in row.items() if name not in moved} | new


def _usable(source: Source[Any], rows: Sequence[SourceRow], unusable: UnusableRows) -> list[SourceRow]:
    """Return the rows that the source makes a record of, one at a time; the others are counted."""
    kept = []
    for row in rows:
        try:
            source.records([row])
        except UnusableRow as error:
            unusable.add(error)
        else:
            kept.append(row)
    return kept
