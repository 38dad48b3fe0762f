"""`parse`, the only door: from what Hydra composed to frozen dataclasses; every mistake is refused with its key."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cdpo_lightning.config.data import ClosedFormConfig, FilesConfig, ModelConfig
from cdpo_lightning.config.methods import MethodConfig, PPOConfig, PrimalDualConfig
from cdpo_lightning.config.run import RunConfig
from cdpo_lightning.config.training import (
    ConstraintConfig,
    EvaluationConfig,
    FitConfig,
    GenerationConfig,
    LoggerConfig,
    PolicyConfig,
    ScorerConfig,
    TrainerConfig,
)
from cdpo_lightning.errors import ConfigError

_GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "sft": FitConfig,
    "reward": ScorerConfig,
    "cost": ScorerConfig,
    "policy": PolicyConfig,
    "constraint": ConstraintConfig,
    "method": MethodConfig,
    "primal_dual": PrimalDualConfig,
    "ppo": PPOConfig,
    "evaluation": EvaluationConfig,
    "generation": GenerationConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
}
_DATASETS: dict[str, type] = {"closed_form": ClosedFormConfig, "files": FilesConfig}
_EXPECTED = {str: "text", int: "a whole number", list: "a list such as [a,b]", bool: "true or false"}
_SCALARS: dict[str, type] = {
    "name": str,
    "seed": int,
    "mode": str,
    "stages": list,
    "resume": bool,
    "run_dir": str,
    "artifacts_dir": str,
}


def _keys(group: str) -> set[str]:
    """The keys of a group, for `dataset` those of all its kinds; of the top level if the group is empty."""
    if not group:
        return {*_SCALARS, *_GROUPS, "dataset"}
    schemas = _DATASETS.values() if group == "dataset" else [_GROUPS[group]] if group in _GROUPS else []
    return {field.name for schema in schemas for field in dataclasses.fields(schema)}


def no_such_key(key: str, known: Collection[str] = ()) -> str:
    """What to say of a key, given in full, that its group has not: what it may be a slip of, and what there is.

    Args:
        key: such as `policy.betaa`.
        known: the group's keys, where its kind is known.
    """
    group, name = key.split(".", 1) if "." in key else ("", key)
    known = sorted(known or _keys(group))
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {group + '.' if group else ''}{near[0]}? " if near else ""
    there = f"; {hint}{group or 'the top level'} has {', '.join(known)}" if known else ""
    return f"{key}: no such key{there}"


def _require_keys(group: str, result: Collection[str], known: Collection[str]) -> None:
    """Every key once, in the YAML and nowhere else: an unknown one would have no effect, a missing one no value."""
    prefix = f"{group}." if group else ""
    for name in sorted(set(result) - set(known)):
        raise ConfigError(no_such_key(prefix + name, known))
    for name in sorted(set(known) - set(result)):
        raise ConfigError(f"{prefix}{name}: missing; give it a value, or begin your file with `defaults:` as in conf/")


def _group(group: str, schema: type, values: Any) -> Any:
    """`values` as an instance of `schema`; every error names the key in full."""
    if not isinstance(values, dict):
        raise ConfigError(f"{group}={values!r}: expected a group of keys, such as {group}.KEY=VALUE")
    values = {str(key): value for key, value in values.items()}
    fields = {field.name: field for field in dataclasses.fields(schema)}
    _require_keys(group, values, fields)
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{group}.{key}={value}: expected a finite number")
        if fields[key].type == "float | str" and type(value) is int:
            values[key] = float(value)  # OmegaConf takes an int for a float, but not for a union
        if fields[key].type == "bool":
            _scalar(f"{group}.{key}", bool, value)  # OmegaConf takes any number for true
    try:
        return OmegaConf.to_object(_merged(schema, values))
    except ConfigError as error:  # of __post_init__; a schema that serves several groups cannot name them
        raise ConfigError(f"{group}.{str(error).removeprefix(group + '.')}") from error
    except OmegaConfBaseException as error:
        key = error.full_key or next(key for key in values if not _fits(schema, key, values[key]))
        raise ConfigError(f"{group}.{key}: {str(error).splitlines()[0]}") from error


_structured = functools.cache(OmegaConf.structured)  # merge copies it


def _merged(schema: type, values: dict[str, Any]) -> Any:
    return OmegaConf.merge(_structured(schema), values)


def _fits(schema: type, key: str, value: Any) -> bool:
    """Whether the value is of the key's type; OmegaConf does not always say which key it stumbled over."""
    try:
        _merged(schema, {key: value})
    except OmegaConfBaseException:
        return False
    return True


def _scalar(name: str, kind: type, value: Any) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r}: expected {_EXPECTED[kind]}, not {type(value).__name__}")
    return value


def _dataset(values: Any) -> ClosedFormConfig | FilesConfig:
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind not in _DATASETS:
        raise ConfigError(f"dataset.kind={kind!r}: expected one of {', '.join(_DATASETS)}; choose a file of conf/dataset/")
    parsed: ClosedFormConfig | FilesConfig = _group("dataset", _DATASETS[kind], values)
    return parsed


def _resolved(config: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def parse(config: DictConfig | dict[str, Any]) -> RunConfig:
    """The run's frozen configuration from what Hydra composed.

    Raises:
        ConfigError: a key is unknown (also one added with `+`), missing, of the wrong type or out of range.
    """
    values = _resolved(config) if isinstance(config, DictConfig) else dict(config)
    _require_keys("", values, _keys(""))
    scalars = {name: _scalar(name, kind, values[name]) for name, kind in _SCALARS.items()}
    external_policies = _candidates(values["policy"])
    if external_policies:
        values["policy"] = dataclasses.asdict(PolicyConfig())  # nothing is trained: none of it is read
    groups = {name: _group(name, schema, values[name]) for name, schema in _GROUPS.items()}
    return RunConfig(**scalars, **groups, dataset=_dataset(values["dataset"]), external_policies=external_policies)


def _candidates(policy: Any) -> tuple[str, ...]:
    """The folders of `policy=FOLDER` or `policy=FOLDER+FOLDER`; none where `policy` is the group of training's keys."""
    folders = tuple(policy.split("+")) if isinstance(policy, str) else ()
    if not all(folders):
        raise ConfigError(f"policy={policy!r}: expected a folder or a hub name, or several with + between them")
    return folders


def plain(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as `parse` reads it: `parse(plain(config))` is `config`."""
    values = dataclasses.asdict(config)
    external_policies = values.pop("external_policies")
    return values | ({"policy": "+".join(external_policies)} if external_policies else {})


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as it is kept in the run's folder."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))
