"""One cell of a row as text, as a label or as a list of texts; an error names the row, the column and what came.

Every function raises DataError: the column is missing, or what stands in it is of another kind.
"""

from typing import Any

from cdpo_lightning.errors import DataError

Columns = dict[str, Any]
_LABELS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def value(place: str, row: Columns, *names: str) -> Any:
    """What stands in the first of the columns that is there."""
    for name in names:
        if name in row:
            return row[name]
    has = ", ".join(map(str, row)) or "none"
    raise DataError(f"{place}: column {' or '.join(names)} is missing, it has {has}; rename it or choose its source")


def text(place: str, row: Columns, *names: str) -> str:
    """The text of the first of the columns that is there; it may be empty."""
    return as_text(place, names[0], value(place, row, *names))


def as_text(place: str, name: str, found: Any) -> str:
    """`found` if it is text that any tokenizer can read."""
    if not isinstance(found, str):
        raise DataError(f"{place}: {name} is {str(found)[:40]!r} ({type(found).__name__}), expected text; correct it")
    try:
        found.encode("utf-8")  # a lone surrogate is valid in JSON and fails every tokenizer
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: {name} is not valid Unicode ({error.reason}); correct the text") from error
    return found


def texts(place: str, row: Columns, *names: str) -> list[str]:
    """The texts of a list, or of one text in which `;` parts them, without those that are blank."""
    found = value(place, row, *names)
    parts = found.split(";") if isinstance(found, str) else found
    if not isinstance(parts, list):
        raise DataError(f"{place}: {names[0]} is {str(found)[:40]!r}, expected a list of texts; correct it")
    return [part.strip() for part in (as_text(place, names[0], part) for part in parts) if part.strip()]


def label(place: str, row: Columns, name: str) -> bool:
    """The label 0, 1, true or false, however it is written."""
    found = value(place, row, name)
    read = _LABELS.get(str(found).strip().lower())
    if read is None:
        raise DataError(f"{place}: {name} is {str(found)[:40]!r}, expected 0, 1, true or false; correct the label")
    return read


def categories(place: str, row: Columns, *names: str) -> tuple[str, ...]:
    """The names in the first of the columns that is there: one text, a list of texts, or {name: whether it applies}."""
    name = next((name for name in names if name in row), None)
    found = row[name] if name else ""
    if isinstance(found, dict):
        return tuple(str(key) for key in found if label(place, found, key))
    parts = found if isinstance(found, list) else [found]
    return tuple(part for part in (as_text(place, str(name), part) for part in parts) if part)
