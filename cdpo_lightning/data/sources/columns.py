"""One cell of a row as text, as a label or as a list of texts; an error names the row, the column and what came.

Every function raises DataError: the column is missing, or what stands in it is of another kind.
"""

from typing import Any

from cdpo_lightning.errors import DataError

Columns = dict[str, Any]
_LABELS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def value(location: str, row: Columns, *names: str) -> Any:
    """What stands in the first of the columns that is there."""
    for name in names:
        if name in row:
            return row[name]
    has = ", ".join(map(str, row)) or "none"
    raise DataError(f"{location}: column {' or '.join(names)} is missing, it has {has}; rename it or choose its source")


def text(location: str, row: Columns, *names: str) -> str:
    """The text of the first of the columns that is there; it may be empty."""
    return as_text(location, names[0], value(location, row, *names))


def as_text(location: str, name: str, result: Any) -> str:
    """`found` if it is text that any tokenizer can read."""
    if not isinstance(result, str):
        raise DataError(f"{location}: {name} is {str(result)[:40]!r} ({type(result).__name__}), expected text; correct it")
    try:
        result.encode("utf-8")  # a lone surrogate is valid in JSON and fails every tokenizer
    except UnicodeEncodeError as error:
        raise DataError(f"{location}: {name} is not valid Unicode ({error.reason}); correct the text") from error
    return result


def texts(location: str, row: Columns, *names: str) -> list[str]:
    """The texts of a list, or of one text in which `;` parts them, without those that are blank."""
    result = value(location, row, *names)
    parts = result.split(";") if isinstance(result, str) else result
    if not isinstance(parts, list):
        raise DataError(f"{location}: {names[0]} is {str(result)[:40]!r}, expected a list of texts; correct it")
    return [part.strip() for part in (as_text(location, names[0], part) for part in parts) if part.strip()]


def label(location: str, row: Columns, name: str) -> bool:
    """The label 0, 1, true or false, however it is written."""
    result = value(location, row, name)
    read = _LABELS.get(str(result).strip().lower())
    if read is None:
        raise DataError(f"{location}: {name} is {str(result)[:40]!r}, expected 0, 1, true or false; correct the label")
    return read


def categories(location: str, row: Columns, *names: str) -> tuple[str, ...]:
    """The names in the first of the columns that is there: one text, a list of texts, or {name: whether it applies}."""
    name = next((name for name in names if name in row), None)
    result = row[name] if name else ""
    if isinstance(result, dict):
        return tuple(str(key) for key in result if label(location, result, key))
    parts = result if isinstance(result, list) else [result]
    return tuple(part for part in (as_text(location, str(name), part) for part in parts) if part)
