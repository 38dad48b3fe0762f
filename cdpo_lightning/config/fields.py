"""`settings`, the decorator of every group of the configuration, and the field types that several groups share.

A group is a frozen pydantic dataclass. Its types, ranges and choices are annotations; rules over several keys are model validators.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, NonNegativeInt, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import CoreSchema, core_schema

from cdpo_lightning.config.messages import Expected, first_mistake, group_classes, shown
from cdpo_lightning.errors import ConfigError

T = TypeVar("T")

# Strict: "3" is no number, 1 is not true, 1.5 is no whole number, nan and inf are no numbers; 1 is a valid float.
_CONFIG = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, validate_default=True, json_schema_serialization_defaults_required=True
)
_NAMES: dict[type, list[str]] = {}  # class of a group -> the keys under which other classes hold it

AtLeastTwo = Annotated[int, Field(ge=2)]
CountOrAll = Annotated[NonNegativeInt, Expected("0 (all) or more")]
CountOrOff = Annotated[NonNegativeInt, Expected("0 (off) or more")]
WeightOrOff = Annotated[float, Field(ge=0), Expected("0 (off) or more")]
Share = Annotated[float, Field(ge=0, lt=1)]  # of a whole, which is not reached
PositiveShare = Annotated[float, Field(gt=0, le=1)]


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Annotates a value as one of `choices`; unlike `Literal` it refuses true for 1, and takes a computed list."""

    choices: tuple[Any, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.chain_schema([handler(source), core_schema.literal_schema(list(self.choices))])


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: type[T]) -> type[T]:
    """Return the class as a frozen pydantic dataclass whose constructor raises `ConfigError`."""
    made = dataclass(frozen=True, config=_CONFIG)(cls)
    validate = made.__init__

    @functools.wraps(validate)
    def construct(self: T, *args: Any, **values: Any) -> None:
        try:
            validate(self, *args, **values)
        except ValidationError as error:
            names = _NAMES.get(type(self), [])
            raise ConfigError(first_mistake(made, error, names[0] if len(names) == 1 else "")) from None

    made.__init__ = construct  # type: ignore[assignment,method-assign]
    for name, kinds in group_classes(made).items():
        for kind in kinds:
            _NAMES.setdefault(kind, []).append(name)
    return made  # type: ignore[return-value]


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise an error unless a rule over several keys holds; `key` is relative to the group whose validator calls this.

    Raises:
        ConfigError: the condition does not hold.
    """
    if not condition:
        raise ConfigError(f"{key}={shown(value)}: expected {expected}")
