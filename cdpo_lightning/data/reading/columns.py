"""Checked access to the columns of a row; an error names the row, the column and the value.

Every function raises DataError if the column is missing or its value has the wrong type. Where several names are given,
the first one that is a column of the row is read, because releases of a data set name their columns differently.
"""

from typing import Any

from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.errors import DataError

_LABELS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def value(row: SourceRow, *names: str) -> Any:
    """Return the value of the first of the columns that exists."""
    for name in names:
        if name in row.columns:
            return row.columns[name]
    has = ", ".join(map(str, row.columns)) or "none"
    raise DataError(
        f"{row.location}: column {' or '.join(names)} is missing, the row has {has}; rename it or choose the source that fits"
    )


def text(row: SourceRow, *names: str) -> str:
    """Return the text of the first of the columns that exists; it may be empty."""
    return _checked_text(row, names[0], value(row, *names))


def texts(row: SourceRow, *names: str) -> list[str]:
    """Return the texts of a list, or of one text separated by `;`, without the blank ones."""
    content = value(row, *names)
    parts = content.split(";") if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise DataError(f"{row.location}: {names[0]} is {str(content)[:40]!r}, expected a list of texts; correct it")
    return [part.strip() for part in (_checked_text(row, names[0], part) for part in parts) if part.strip()]


def label(row: SourceRow, name: str) -> bool:
    """Return a label given as 0, 1, true or false, as a number, a boolean or text."""
    content = value(row, name)
    parsed = _LABELS.get(str(content).strip().lower())
    if parsed is None:
        raise DataError(f"{row.location}: {name} is {str(content)[:40]!r}, expected 0, 1, true or false; correct the label")
    return parsed


def categories(row: SourceRow, *names: str) -> tuple[str, ...]:
    """Return the categories in the first of the columns that exists: a text, a list of texts, or {name: label}; () if none does."""
    name = next((name for name in names if name in row.columns), None)
    if name is None:
        return ()
    content = row.columns[name]
    if isinstance(content, dict):
        return tuple(str(key) for key in content if label(SourceRow(row.location, content), key))
    parts = content if isinstance(content, list) else [content]
    return tuple(part for part in (_checked_text(row, name, part) for part in parts) if part)


def _checked_text(row: SourceRow, name: str, content: Any) -> str:
    """Return `content` if it is text that every tokenizer can encode."""
    if not isinstance(content, str):
        kind = type(content).__name__
        raise DataError(f"{row.location}: {name} is {str(content)[:40]!r} ({kind}), expected text; correct it")
    try:
        content.encode("utf-8")  # a lone surrogate is valid in JSON but makes every tokenizer fail
    except UnicodeEncodeError as error:
        raise DataError(f"{row.location}: {name} is not valid Unicode ({error.reason}); correct the text") from error
    return content
