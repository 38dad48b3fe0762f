"""Every file of conf/ is composed and parsed; the keys a user may rely on are frozen; nobody ever needs a `+`."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cdpo_lightning.config import FilesConfig, RunConfig, parse

ROOT = Path(__file__).resolve().parent.parent.parent
CONF = ROOT / "conf"
GOLDEN = ROOT / "tests" / "golden" / "keys.txt"
FILES = sorted(
    path.relative_to(CONF).with_suffix("").as_posix()
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and "hydra" not in path.parts
)
EXPERIMENTS = [name.partition("/")[2] for name in FILES if name.startswith("experiment/")]
SUITES = [name.partition("/")[2] for name in FILES if name.startswith("evaluation/")]
CHOICES = [name for name in FILES if not name.startswith(("experiment/", "evaluation/"))]
NEVER_MOVE = [
    "seed", "mode", "stages", "run_dir", "artifacts_dir", "policy.beta", "policy.labels", "policy.loss", "policy.refresh",
    "policy.anchor", "constraint.c_limit", "constraint.update", "constraint.lambda_init", "constraint.lambda_lr",
    "constraint.lambda_max", "constraint.every_k_epochs", "constraint.prompts", "constraint.samples_per_prompt",
]  # fmt: skip


@functools.cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["run_dir=here", *overrides])


def flat(values: object, prefix: str = "") -> list[str]:
    """`policy.beta` and its like, of everything that holds a value."""
    if not isinstance(values, dict):
        return [prefix]
    return [key for name, value in values.items() for key in flat(value, f"{prefix}.{name}" if prefix else str(name))]


def keys(config: DictConfig) -> list[str]:
    return sorted(flat(OmegaConf.to_container(config)))


def with_model(choice: str) -> list[str]:
    """What else a choice needs: words of the world's own are all that a model built here knows."""
    return ["model=smollm2_135m"] if choice.startswith("dataset/") and choice != "dataset/closed_form" else []


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_a_group_is_a_whole_configuration(choice: str) -> None:
    group, _, name = choice.partition("/")
    assert isinstance(parse(composed(f"{group}={name}", *with_model(choice))), RunConfig)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_whole_configuration_under_its_own_name(name: str) -> None:
    assert parse(composed(f"+experiment={name}")).name == name


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_changes_the_evaluation_alone_and_begins_with_its_command(name: str) -> None:
    plain, changed = (OmegaConf.to_container(composed(*more)) for more in ((), (f"+evaluation={name}",)))
    assert plain.pop("evaluation") != changed.pop("evaluation")
    assert plain == changed
    assert isinstance(parse(composed(f"+evaluation={name}")), RunConfig)
    first = (CONF / "evaluation" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(rf"# python run\.py .*\+evaluation=.*\b{name}\b.*", first)


def test_suites_add_up() -> None:
    result = parse(composed("+evaluation=[table1,over_refusal,truthfulqa]")).evaluation
    assert (result.prompts, result.samples_per_prompt) == (2000, 5)
    assert result.refusal_prompts.endswith("xstest_prompts.csv")
    assert result.truthfulqa.endswith("truthfulqa/mc_task.json")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_begins_with_the_command_that_runs_it(name: str) -> None:
    first, second, *_ = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert first == "# @package _global_"
    assert second.startswith("# python run.py ")
    assert f"+experiment={name}" in second


def test_the_keys_are_those_a_user_relies_on() -> None:
    """A key that was added goes into the golden file; one that went needs a line in CHANGELOG.md too.

    To write the file anew: python -c "from tests.conf.test_conf import *; GOLDEN.write_text('\\n'.join(keys(composed())) + '\\n')"
    """
    assert keys(composed()) == GOLDEN.read_text(encoding="utf-8").split()


def test_the_keys_of_the_contract_never_move() -> None:
    known = keys(composed())
    assert [key for key in NEVER_MOVE if key not in known] == []
    for group in ("model", "dataset", "trainer", "logger", "method"):
        assert any(key == group or key.startswith(f"{group}.") for key in known)


def test_every_field_of_every_dataclass_stands_in_the_yaml() -> None:
    config = composed()
    parsed = parse(config)
    for field in dataclasses.fields(parsed):
        value = getattr(parsed, field.name)
        if dataclasses.is_dataclass(value):
            assert {f.name for f in dataclasses.fields(value)} == set(config[field.name]), field.name
    files = composed("dataset=pku_saferlhf").dataset
    assert {f.name for f in dataclasses.fields(FilesConfig)} == set(files)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_files_of_a_group_have_the_same_keys(choice: str) -> None:
    """Whatever a user chooses, `key=value` goes on working; only another kind of data set has other keys."""
    group, _, name = choice.partition("/")
    result = composed(f"{group}={name}")[group]
    kind = result.get("kind") if group == "dataset" else None
    first = next(c.partition("/")[2] for c in CHOICES if c.startswith(f"{group}/") and (not kind or kind_of(c) == kind))
    assert set(result) == set(composed(f"{group}={first}")[group])


def kind_of(choice: str) -> str:
    group, _, name = choice.partition("/")
    return str(composed(f"{group}={name}")[group].get("kind"))


def test_the_default_list_names_no_experiment() -> None:
    """Else `+experiment=x` would be refused: the group would have been chosen already."""
    assert not re.search(r"^\s*-.*\bexperiment\b", (CONF / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_plain_run_is_the_closed_form_world_on_the_cpu() -> None:
    config = parse(composed())
    assert (config.name, config.dataset.kind) == ("closed_form", "closed_form")
    assert (config.trainer.accelerator, config.who) == ("cpu", "cdpo")


def test_a_unit_or_the_choices_stand_beside_every_value_that_needs_them() -> None:
    """One value a line, and for a quantity with a sign or a unit, the comment that says which."""
    text = "\n".join((CONF / f"{name}.yaml").read_text(encoding="utf-8") for name in ("constraint/dual", "config"))
    for key in ("c_limit", "lambda_init", "lambda_lr", "beta", "labels", "loss", "refresh", "anchor", "run_dir", "mode"):
        if key != "run_dir":
            assert re.search(rf"^\s*{key}: [^#\n]+ # \S", text, re.MULTILINE), key
