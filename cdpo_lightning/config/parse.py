"""`parse`, which validates the configuration that Hydra composed and returns a `RunConfig`; an error names its key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from cdpo_lightning.config.messages import first_mistake, group_classes, quoted
from cdpo_lightning.config.run import RENAMED, RunConfig
from cdpo_lightning.config.training import PolicyConfig
from cdpo_lightning.errors import ConfigError

_GROUPS = group_classes(RunConfig)
_INTERNAL = "external_policies"  # the field that `parse` fills from `policy=FOLDER`; not a key of the configuration
_ADAPTER = TypeAdapter(RunConfig)


def known_keys(group: str) -> set[str]:
    """Return the keys of a group (of all its kinds), or of the top level if `group` is empty."""
    kinds = _GROUPS.get(group, ()) if group else (RunConfig,)
    return {field.name for kind in kinds for field in dataclasses.fields(kind)} - {_INTERNAL}


def no_such_key(key: str, known: Collection[str] = ()) -> str:
    """Return the message for a key that does not exist: its new name, how to add it, or the most similar key and all keys.

    Args:
        key: the full key, such as `policy.betaa`.
        known: the keys of the group; empty: those of all its kinds.
    """
    if key in RENAMED:
        return f"{key}: renamed to {RENAMED[key]}"
    group, name = key.split(".", 1) if "." in key else ("", key)
    entries = name.partition(".")[0]
    if any(get_origin(get_type_hints(kind).get(entries)) is dict for kind in _GROUPS.get(group, ())):
        return f"{key}: an entry of {group}.{entries} is added with +{group}.{entries}.NAME=VALUE"
    known = sorted(known or known_keys(group))
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {group + '.' if group else ''}{near[0]}? " if near else ""
    listed = f"; {hint}{group or 'the top level'} has {', '.join(known)}" if known else ""
    return f"{key}: no such key{listed}"


def _require_keys(group: str, present: Collection[str], known: Collection[str]) -> None:
    """Raise an error unless the keys are exactly the known ones.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    prefix = f"{group}." if group else ""
    for name in sorted(set(present) - set(known)):
        raise ConfigError(no_such_key(prefix + name, known))
    for name in sorted(set(known) - set(present)):
        raise ConfigError(f"{prefix}{name}: missing; give it a value, or begin your file with `defaults:` as in conf/")


def _class_of(group: str, values: dict[str, Any]) -> type:
    """Return the class of a group; if it has several kinds, the one that the key `kind` selects."""
    first, *others = _GROUPS[group]
    if not others:
        return first
    kinds = {field.default: kind for kind in (first, *others) for field in dataclasses.fields(kind) if field.name == "kind"}
    name = values.get("kind")
    if not isinstance(name, str) or name not in kinds:
        expected = ", ".join(str(kind) for kind in kinds)
        raise ConfigError(f"{group}.kind={quoted(name)}: expected one of {expected}; choose a file of conf/{group}/")
    return kinds[name]


def _named(values: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items()}


def _resolved(config: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return _named(values)


def _policies(policy: Any) -> tuple[str, ...]:
    """Return the folders of `policy=FOLDER` or `policy=FOLDER+FOLDER`; empty if `policy` is the group of training settings."""
    folders = tuple(policy.split("+")) if isinstance(policy, str) else ()
    if not all(folders):
        raise ConfigError(f"policy={quoted(policy)}: expected a folder or a hub name, or several with + between them")
    return folders


def parse(config: DictConfig | dict[str, Any]) -> RunConfig:
    """Return the run's frozen configuration from what Hydra composed, or from `plain`.

    Raises:
        ConfigError: a key is unknown (also one added with `+`), missing, of the wrong type or out of range. Of several mistakes the
            first is reported: wrong keys before wrong values, both in the order of `RunConfig`, rules over several keys last.
    """
    values = _resolved(config) if isinstance(config, DictConfig) else _named(config)
    _require_keys("", values, known_keys(""))
    policies = _policies(values["policy"])
    if policies:
        values["policy"] = dataclasses.asdict(PolicyConfig())  # not read: nothing is trained
    for group in _GROUPS:
        if not isinstance(values[group], dict):
            raise ConfigError(f"{group}={quoted(values[group])}: expected a group of keys, such as {group}.KEY=VALUE")
        values[group] = _named(values[group])
        _require_keys(group, values[group], [field.name for field in dataclasses.fields(_class_of(group, values[group]))])
    try:
        # As JSON, for pydantic's strict mode reads a group from an object of JSON, but not from a dict.
        return _ADAPTER.validate_json(json.dumps({**values, _INTERNAL: policies}))
    except ValidationError as error:
        raise ConfigError(first_mistake(RunConfig, error)) from None


def plain(config: RunConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain data, such that `parse(plain(config))` equals `config`."""
    values = dataclasses.asdict(config)
    policies = values.pop(_INTERNAL)
    return values | ({"policy": "+".join(policies)} if policies else {})


def to_yaml(config: RunConfig) -> str:
    """Return the resolved configuration as YAML, for the run's folder."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the input of `parse`, without rules over several keys."""
    schema = _ADAPTER.json_schema(mode="serialization")  # in the schema for validation, keys with a default are not required
    schema["properties"].pop(_INTERNAL)
    schema["required"].remove(_INTERNAL)
    folder = {
        "type": "string",
        "minLength": 1,
        "description": "mode=evaluate: a folder or a hub name, or several with + between them",
    }
    schema["properties"]["policy"] = {"anyOf": [schema["properties"]["policy"], folder]}
    return schema
