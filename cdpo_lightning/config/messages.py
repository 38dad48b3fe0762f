"""Turns an error of pydantic into one line: the full key, the value, and what was expected."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic.fields import FieldInfo

LONGEST_VALUE = 80  # characters of a value that a message repeats
_TYPES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list such as [a,b]",
    tuple: "a list such as [a,b]",
    dict: "keys and values such as {a: 1}",
    types.NoneType: "null",
}
# Error types of pydantic for a value of the right type that is out of range or none of the choices.
_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "literal_error", "string_too_short")


@dataclasses.dataclass(frozen=True)
class Expected:
    """Annotates a field with a text for its range, for example to explain what 0 means."""

    text: str


def shown(value: object) -> str:
    """Return the value as in a YAML file, on one line, with at most `LONGEST_VALUE` characters."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        text = words[value]
    else:
        text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def quoted(value: object) -> str:
    """Return the value as `shown` does, but text in quotes, to distinguish '3' from 3."""
    return shown(repr(value)) if isinstance(value, str) else shown(value)


def group_classes(cls: type) -> dict[str, tuple[type, ...]]:
    """Return the fields of a configuration that are groups of keys, each with the classes that it may have."""
    groups: dict[str, tuple[type, ...]] = {}
    for name, hint in get_type_hints(cls).items():
        kinds = tuple(kind for kind in get_args(hint) or (hint,) if dataclasses.is_dataclass(kind) and isinstance(kind, type))
        if kinds:
            groups[name] = kinds
    return groups


def first_mistake(cls: type, error: ValidationError, group: str = "") -> str:
    """Return the message for the first mistake, in the order of the fields.

    Args:
        cls: the class whose values were validated.
        error: of pydantic.
        group: the key under which the configuration holds `cls`; empty for the whole configuration.
    """
    first = error.errors(include_url=False)[0]
    keys, hint = _located(cls, first["loc"])
    key = ".".join([group] * bool(group) + keys)
    reason = first.get("ctx", {}).get("error")
    if first["type"] == "value_error" and reason is not None:
        return _under(key, str(reason))
    if first["type"] in ("unexpected_keyword_argument", "missing"):
        last = str(first["loc"][-1])
        full = key if keys and keys[-1] == last else f"{key}.{last}" if key else last
        return f"{full}: missing" if first["type"] == "missing" else f"{full}: no such key"
    value = first["input"]
    if first["type"] == "finite_number":
        return f"{key}={shown(value)}: expected a finite number"
    if first["type"] in _OUT_OF_RANGE and not _is_union(hint):
        return f"{key}={shown(value)}: expected {_range(hint)}{_nearest(value, hint)}"
    return f"{key}={quoted(value)}: expected {_described(hint)}{_nearest(value, hint)}"


def _under(group: str, message: str) -> str:
    """Return the message with the group before its key, unless the message begins with the group already."""
    return message if not group or message.startswith(f"{group}.") else f"{group}.{message}"


def _located(cls: type, location: Iterable[int | str]) -> tuple[list[str], Any]:
    """Return the keys that lead to a value, without pydantic's tags of unions, and the value's type hint."""
    keys: list[str] = []
    hint: Any = cls
    for part in location:
        kinds = [kind for kind in _members(hint) if dataclasses.is_dataclass(kind)]
        fields = [get_type_hints(kind, include_extras=True) for kind in kinds]
        inside = get_args(_bare(hint))
        if any(part in field for field in fields):
            keys.append(str(part))
            hint = next(field[str(part)] for field in fields if part in field)
        elif get_origin(_bare(hint)) is dict and part != "[key]":
            keys.append(str(part))
            hint = inside[1]
        elif isinstance(part, int) and inside:
            hint = inside[0]
    return keys, hint


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_union(hint: Any) -> bool:
    return get_origin(_bare(hint)) in (Union, types.UnionType)


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type."""
    return get_args(_bare(hint)) if _is_union(hint) else (_bare(hint),)


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the allowed values of a field, empty if they are not listed."""
    listed = (meta.choices for meta in _metadata(hint) if hasattr(meta, "choices"))
    return get_args(_bare(hint)) if get_origin(_bare(hint)) is Literal else next(listed, ())


def _metadata(hint: Any) -> list[Any]:
    given = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return [each for meta in given for each in (meta.metadata if isinstance(meta, FieldInfo) else [meta])]


def _described(hint: Any) -> str:
    """Return the type and the range as text."""
    if _is_union(hint):
        return "; or ".join(_described(member) for member in get_args(_bare(hint)))
    bare = _bare(hint)
    if dataclasses.is_dataclass(bare):
        return "a group of keys"
    limits = _range(hint)
    words = _TYPES.get(get_origin(bare) or bare, "")
    return ", ".join(part for part in (words, limits) if part)


def _range(hint: Any) -> str:
    """Return the range or the choices as text, empty if every value of the type is allowed."""
    metadata = _metadata(hint)
    if stated := [meta.text for meta in metadata if isinstance(meta, Expected)]:
        return str(stated[0])
    if choices := _choices(hint):
        return "one of " + ", ".join(shown(choice) for choice in choices)
    bounds = {name: getattr(meta, name) for meta in metadata for name in ("gt", "ge", "lt", "le") if hasattr(meta, name)}
    if _bare(hint) is int and "gt" in bounds:
        bounds["ge"] = bounds.pop("gt") + 1
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None:
        return ""
    if high is None:
        return f"more than {low}" if "gt" in bounds else f"at least {low}" if low else "0 or more"
    if "ge" in bounds and "le" in bounds:
        return f"{low} to {high}"
    return f"{'[' if 'ge' in bounds else '('}{low}, {high}{']' if 'le' in bounds else ')'}"


def _nearest(value: object, hint: Any) -> str:
    """Return a hint with the choice that is most similar to the value; empty if none is similar."""
    choices = [str(choice) for member in (hint, *_members(hint)) for choice in _choices(member)]
    near = get_close_matches(value, choices, 1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""
