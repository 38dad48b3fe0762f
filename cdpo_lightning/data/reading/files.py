"""Rows of a local file: JSON lines, JSON, CSV, parquet, and plain text with one prompt a line; all but parquet also gzipped.

A row that cannot be read is yielded as an `UnusableRow`, so that the rows after it are read as well. JSON, CSV and parquet are not
read with `datasets`: it does not report the line of an error, its CSV reader turns an answer "None" or "N/A" into a missing value,
and it copies what it reads into a cache in the home folder.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cdpo_lightning.data.reading.unusable import UnusableRow
from cdpo_lightning.errors import DataError


class SourceRow(NamedTuple):
    """One row of a data set: its location, for error messages, and its columns by name."""

    location: str
    columns: dict[str, Any]


Rows = Iterator[SourceRow | UnusableRow]


def file_type(file: Path) -> str:
    """Return the suffix that names the format; for a gzipped file the one before `.gz`, empty if gzipped files cannot have it."""
    if file.suffix != ".gz":
        return file.suffix
    inner = Path(file.stem).suffix
    return "" if inner == ".parquet" else inner


def is_data_file(file: Path) -> bool:
    """Return whether a file of a folder holds rows: it has a known type, and is neither text nor the description of a data set.

    A text file holds prompts only if it is named itself, because in a folder it is a licence or a note.
    """
    return file_type(file) in READERS and file_type(file) != ".txt" and not file.name.startswith("dataset_info")


def read_file(file: Path, name: str = "") -> Rows:
    """Yield the rows of a file, each with the location `name:line`; `name` is the file's own unless given.

    Raises:
        DataError: the file has another type, cannot be read, or is damaged as a whole.
    """
    if file_type(file) not in READERS:
        raise DataError(f"{file}: file type {file.suffix!r}, expected {expected_types()}; convert or rename it")
    try:
        yield from READERS[file_type(file)](file, name or file.name)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a gzipped file that is cut off or damaged
        raise DataError(f"{file}: cannot be read ({error}), expected a readable file; check it") from error


def expected_types() -> str:
    """Return the file types for an error message."""
    return f"{', '.join(READERS)} (all but .parquet also with .gz)"


def _bytes(file: Path) -> bytes:
    data = file.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        raise DataError(f"{file}: a Git LFS pointer, not the data; run git lfs pull in its folder")
    return gzip.decompress(data) if file.suffix == ".gz" else data


def _text(file: Path) -> tuple[str, bool]:
    """Return the text, and whether all of it is UTF-8; bytes that are not are kept as lone surrogates."""
    data = _bytes(file).removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8"), True
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape"), False


def _utf8_text(file: Path, name: str) -> str:
    """Return the text of a file that is unusable as a whole if a part of it is not UTF-8."""
    text, clean = _text(file)
    fault = None if clean else _encoding_fault(text, name)
    if fault:
        raise fault
    return text


def _encoding_fault(text: str, location: str) -> UnusableRow | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return UnusableRow("not_utf8", f"{location}: not UTF-8 (at {text[: error.start][-20:]!r}); save the file as UTF-8")
    return None


def _parse(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{location}: not JSON ({error}), expected one JSON object; correct or remove it"
        raise UnusableRow("not_json", message) from error


def _row(location: str, value: Any) -> SourceRow | UnusableRow:
    if isinstance(value, dict):
        return SourceRow(location, value)
    kind = type(value).__name__
    return UnusableRow("not_object", f"{location}: a JSON {kind}, expected an object of named columns; correct it")


def _json_line(line: str, location: str, clean: bool) -> SourceRow | UnusableRow:
    fault = None if clean else _encoding_fault(line, location)
    if fault:
        return fault
    try:
        return _row(location, _parse(line, location))
    except UnusableRow as unusable:
        return unusable


def _read_jsonl(file: Path, name: str) -> Rows:
    return _json_lines(*_text(file), name)


def _json_lines(text: str, clean: bool, name: str) -> Rows:
    lines = enumerate(text.split("\n"), 1)  # not splitlines, which also splits at U+2028 inside JSON strings
    return (_json_line(line, f"{name}:{n}", clean) for n, line in lines if line.strip())


def _read_json(file: Path, name: str) -> Rows:
    """Yield the objects of an array, of `{"data": [...]}`, or of JSON lines in a file with the wrong suffix."""
    text, clean = _text(file)
    if _is_json_lines(text):
        return _json_lines(text, clean, name)
    values = _parse(_utf8_text(file, name), name)
    if isinstance(values, dict) and isinstance(values.get("data"), list):
        values = values["data"]
    if not isinstance(values, list):
        kind = type(values).__name__
        expected = 'an array of objects, {"data": [...]} or one object a line'
        raise DataError(f"{file}: a JSON {kind}, expected {expected}; for a single line use .jsonl")
    return (_row(f"{name}:{number}", value) for number, value in enumerate(values, 1))


def _is_json_lines(text: str) -> bool:
    """Return whether a file named .json has an object a line: the first line is a whole object, or, if damaged, another is."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or not lines[0].lstrip().startswith("{"):
        return False
    return _is_object(lines[0]) or (not _is_object(text) and any(map(_is_object, lines[1:])))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_csv(file: Path, name: str) -> Rows:
    text, clean = _text(file)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        reader.fieldnames  # noqa: B018, reads the header, without which no row can be read
    except csv.Error as error:
        raise DataError(f"{name}:1: the header is not CSV ({error}); correct the quotes") from error
    return _csv_rows(reader, clean, name)


def _csv_rows(reader: "csv.DictReader[str]", clean: bool, name: str) -> Rows:
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield UnusableRow("not_csv", f"{name}:{reader.reader.line_num}: not CSV ({error}); correct the quotes")
            continue
        if row is None:
            return
        location = f"{name}:{reader.line_num}"
        if None in row or None in row.values():
            yield UnusableRow("cells", f"{location}: more or fewer cells than columns; quote its commas")
            continue
        yield (None if clean else _encoding_fault("".join(row.values()), location)) or SourceRow(location, row)


def _read_txt(file: Path, name: str) -> Rows:
    text, clean = _text(file)
    for number, line in enumerate(text.split("\n"), 1):
        prompt = line.removesuffix("\r")
        if prompt.strip():
            location = f"{name}:{number}"
            yield (None if clean else _encoding_fault(prompt, location)) or SourceRow(location, {"prompt": prompt})


def _read_parquet(file: Path, name: str) -> Rows:
    import pyarrow.parquet  # installed with datasets; imported here because it is slow to import and few runs need it

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(_bytes(file))).to_pylist()
    except ValueError as error:
        raise DataError(f"{file}: not parquet ({error}), expected a whole parquet file; fetch it again") from error
    return number_rows(name, rows)


def number_rows(source: str, rows: Iterable[dict[str, Any]]) -> Iterator[SourceRow]:
    """Yield rows that have no lines, each with its number."""
    return (SourceRow(f"{source}:{number}", columns) for number, columns in enumerate(rows, 1))


READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
