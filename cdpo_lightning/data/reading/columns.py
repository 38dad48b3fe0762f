"""Checked access to the columns of a row; an error names the row, the column and the value.

Every function raises UnusableRow if the column is missing or its value has the wrong type. Where several names are given,
the first one that is a column of the row is read, because releases of a data set name their columns differently.
"""

from typing import Any

from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.unusable import UnusableRow

_INDICES = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_LABELS = _INDICES | {"no": False, "yes": True, "unsafe": False, "safe": True}


def value(row: SourceRow, *names: str) -> Any:
    """Return the value of the first of the columns that exists."""
    for name in names:
        if name in row.columns:
            return row.columns[name]
    has = ", ".join(map(str, row.columns)) or "none"
    message = f"{row.location}: column {' or '.join(names)} is missing, the row has {has}"
    raise UnusableRow("no_column", f"{message}; rename it with dataset.columns, or choose the source that fits")


def text(row: SourceRow, *names: str) -> str:
    """Return the text of the first of the columns that exists; it may be empty."""
    return checked_text(row, names[0], value(row, *names))


def texts(row: SourceRow, *names: str) -> list[str]:
    """Return the texts of a list, or of one text separated by `;`, without the blank ones."""
    content = value(row, *names)
    parts = content.split(";") if isinstance(content, str) else content
    if not isinstance(parts, list):
        message = f"{row.location}: {names[0]} is {str(content)[:40]!r}, expected a list of texts; correct it"
        raise UnusableRow("not_text", message)
    return [part.strip() for part in (checked_text(row, names[0], part) for part in parts) if part.strip()]


def response_text(row: SourceRow) -> str:
    """Return the column `response`.

    Raises:
        UnusableRow: it is null (`no_response`), as in rows that are prompts only.
    """
    if is_null(value(row, "response")):
        message = f"{row.location}: response is null, expected text; dataset.on_unusable=drop leaves it out"
        raise UnusableRow("no_response", message)
    return text(row, "response")


def is_null(content: Any) -> bool:
    """Return whether a cell holds nothing: null in JSON, an empty cell in CSV, nan in parquet written by pandas."""
    return content is None or content != content or (isinstance(content, str) and not content.strip())  # nan != nan


def label(row: SourceRow, name: str) -> bool:
    """Return a label given as 0, 1, true, false, yes, no, safe or unsafe, as a number, a boolean or text."""
    return _choice(row, name, _LABELS, "0, 1, true or false, yes or no, safe or unsafe")


def optional_label(row: SourceRow, name: str) -> bool | None:
    """Return a label as `label` does, None if the row has no such column or the cell holds nothing."""
    return None if is_null(row.columns.get(name)) else label(row, name)


def optional_index(row: SourceRow, name: str) -> int | None:
    """Return which of two responses is meant, 0 or 1, None if the row has no such column or the cell holds nothing."""
    if is_null(row.columns.get(name)):
        return None
    return int(_choice(row, name, _INDICES, "0, 1, true or false, or null"))


def word_label(row: SourceRow, name: str, positive: str, negative: str) -> bool:
    """Return whether the label is `positive`.

    Raises:
        UnusableRow: there is no label (`no_label`), or another one (`bad_label`).
    """
    content = value(row, name)
    if is_null(content):
        raise UnusableRow("no_label", f"{row.location}: {name} is null, expected {positive} or {negative}; remove the row")
    return _choice(row, name, {positive: True, negative: False}, f"{positive} or {negative}")


def _choice(row: SourceRow, name: str, choices: dict[str, bool], expected: str) -> bool:
    content = value(row, name)
    parsed = choices.get(str(content).strip().lower())
    if parsed is None:
        message = f"{row.location}: {name} is {str(content)[:40]!r}, expected {expected}; correct the label"
        raise UnusableRow("bad_label", message)
    return parsed


def categories(row: SourceRow, *names: str) -> tuple[str, ...]:
    """Return the categories in the first of the columns that exists: a text, a list of texts, or {name: label}; () if none."""
    name = next((name for name in names if name in row.columns), None)
    content = row.columns[name] if name else None
    if name is None or content is None:
        return ()
    if isinstance(content, dict):
        return tuple(str(key) for key in content if label(SourceRow(row.location, content), key))
    parts = content if isinstance(content, list) else [content]
    return tuple(part for part in (checked_text(row, name, part) for part in parts) if part)


def checked_text(row: SourceRow, name: str, content: Any) -> str:
    """Return `content` if it is text that every tokenizer can encode."""
    if not isinstance(content, str):
        kind = type(content).__name__
        message = f"{row.location}: {name} is {str(content)[:40]!r} ({kind}), expected text; correct it"
        raise UnusableRow("not_text", message)
    try:
        content.encode("utf-8")  # a lone surrogate is valid in JSON but makes every tokenizer fail
    except UnicodeEncodeError as error:
        message = f"{row.location}: {name} is not valid Unicode ({error.reason}); correct the text"
        raise UnusableRow("not_unicode", message) from error
    return content
