"""Rows of a data set, each with its location, from a local file, a folder or the Hugging Face hub.

Local JSON, CSV and parquet are not read with `datasets`: it does not report the line of an error, its CSV reader turns an
answer "None" or "N/A" into a missing value, and it copies what it reads into a cache in the home folder.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from cdpo_lightning.errors import ConfigError, DataError


class SourceRow(NamedTuple):
    """One row of a data set: its location, for error messages, and its columns by name."""

    location: str
    columns: dict[str, Any]


def read_rows(path: str, split: str = "train", revision: str | None = None, limit: int | None = None) -> list[SourceRow]:
    """Return the first `limit` rows (None: all) of a data set; a location is `file:line` or `name[split]:row`.

    `path` is a file, a folder of files, a folder written by `save_to_disk`, or a hub name, tried in that order. The split
    does not apply to a file. Of a folder, the files named after the split are read, or all files if no file name is that
    of a split. A hub name is `owner/name`, optionally followed by `:part` (a configuration, or a folder if it ends with a
    slash), `@revision` (a tag or commit) and `%split`; these two take precedence over the arguments.

    Raises:
        DataError: the path does not exist, cannot be read, or has no rows.
        ConfigError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: got {limit}, expected at least 1, or null for every row")
    rows = list(islice(_find_rows(path, split, revision), limit))
    if not rows:
        raise DataError(f"{path}: has no rows, expected at least one; check the file or the split ({split})")
    return rows


def _find_rows(path: str, split: str, revision: str | None) -> Iterator[SourceRow]:
    local = Path(path).expanduser()
    if path and local.is_dir():
        return _read_saved(local, split) if _is_saved(local) else _read_folder(local, split)
    if path and local.exists():
        return _read_file(local)
    if _looks_local(re.split("[:@%]", path)[0]):
        raise DataError(f"{path!r}: missing file, expected {', '.join(_READERS)}, a folder of them or a hub name")
    return _read_hub(*_hub_address(path, split, revision))


_HUB = re.compile(r"(?P<name>[^:@%]+)(:(?P<part>[^:@%]+))?(@(?P<revision>[^:@%]+))?(%(?P<split>[^:@%]+))?")


def _hub_address(path: str, split: str, revision: str | None) -> tuple[str, str | None, str, str | None]:
    """Return (name, part, split, revision) of a hub name."""
    match = _HUB.fullmatch(path)
    if match is None:
        raise DataError(f"{path!r}: no file, and not a hub name such as owner/name:part@revision%split; correct it")
    return match["name"], match["part"], match["split"] or split, match["revision"] or revision


def is_unpinned(path: str, revision: str | None) -> bool:
    """Return whether the path is a hub name without a revision, so that the data may change between runs."""
    return bool(path) and not Path(path).expanduser().exists() and "@" not in path and revision is None


def _looks_local(path: str) -> bool:
    """Return whether a path that does not exist was meant as a file: a mistyped file name must not start a download."""
    suffix = Path(path).suffix  # of the hub name "OpenHermes-2.5" it is ".5", which is no file type
    return path[:1] in {"", ".", "/", "~"} or path.count("/") > 1 or bool(re.match(r"\.[A-Za-z]", suffix))


def _read_file(file: Path) -> Iterator[SourceRow]:
    if file.suffix not in _READERS:
        raise DataError(f"{file}: file type {file.suffix!r}, expected {', '.join(_READERS)}; convert or rename it")
    try:
        yield from _READERS[file.suffix](file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}), expected a readable file; check it") from error


def _text(file: Path) -> str:
    data = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file.name}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _parse(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: not JSON ({error}), expected one JSON object; correct or remove it") from error


def _number_objects(file: Path, values: Iterable[tuple[int, Any]]) -> Iterator[SourceRow]:
    for number, value in values:
        location = f"{file.name}:{number}"
        if not isinstance(value, dict):
            raise DataError(f"{location}: a JSON {type(value).__name__}, expected an object of named columns; correct it")
        yield SourceRow(location, value)


def _read_jsonl(file: Path) -> Iterator[SourceRow]:
    lines = enumerate(_text(file).split("\n"), 1)  # not splitlines, which also splits at U+2028 inside JSON strings
    return _number_objects(file, ((n, _parse(line, f"{file.name}:{n}")) for n, line in lines if line.strip()))


def _read_json(file: Path) -> Iterator[SourceRow]:
    values = _parse(_text(file), file.name)
    if not isinstance(values, list):
        raise DataError(f"{file}: a JSON {type(values).__name__}, expected an array of objects; for lines use .jsonl")
    return _number_objects(file, enumerate(values, 1))


def _read_csv(file: Path) -> Iterator[SourceRow]:
    reader = csv.DictReader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{file.name}:{reader.line_num}: more or fewer cells than columns; quote its commas")
            yield SourceRow(f"{file.name}:{reader.line_num}", row)
    except csv.Error as error:
        raise DataError(f"{file.name}:{reader.reader.line_num}: not CSV ({error}); correct the quotes") from error


def _read_parquet(file: Path) -> Iterator[SourceRow]:
    import pyarrow.parquet  # installed with datasets; imported here because it is slow to import and few runs need it

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except ValueError as error:
        raise DataError(f"{file}: not parquet ({error}), expected a whole parquet file; fetch it again") from error
    return _number_rows(file.name, rows)


_READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_SPLIT_NAME = re.compile(r"(train|training|test|val|valid|validation|dev|eval)([-_.]|$)")


def _read_folder(folder: Path, split: str) -> Iterator[SourceRow]:
    files = sorted(file for file in folder.iterdir() if file.suffix in _READERS)
    if any(_SPLIT_NAME.match(file.name) for file in files):  # then the other files are other splits, which must not be mixed in
        files = [file for file in files if re.match(rf"{re.escape(split)}([-_.]|$)", file.name)]
    if not files:
        raise DataError(f"{folder}: no file for the split {split!r}, expected one such as {split}.jsonl; name a file")
    for file in files:
        yield from _read_file(file)


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _read_saved(folder: Path, split: str) -> Iterator[SourceRow]:
    import datasets  # imported here because it is slow to import and few runs need it

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a whole save_to_disk folder ({error}); save the data set again") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(f"{folder}: no split {split!r}, it has {', '.join(saved)}; name one of these")
        saved = saved[split]
    return _number_rows(f"{folder.name}[{split}]", saved)


def _read_hub(name: str, part: str | None, split: str, revision: str | None) -> Iterator[SourceRow]:
    import datasets  # imported here because it is slow to import and few runs need it

    key = "data_dir" if part and part.endswith("/") else "name"
    options = {key: part.rstrip("/")} if part else {}
    try:
        rows = datasets.load_dataset(name, split=split, revision=revision, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name}: no such file, and not on the hub ({reason}); check name and split") from error
    return _number_rows(f"{name}[{split}]", rows)


def _number_rows(source: str, rows: Iterable[dict[str, Any]]) -> Iterator[SourceRow]:
    return (SourceRow(f"{source}:{number}", columns) for number, columns in enumerate(rows, 1))
