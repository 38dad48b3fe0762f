"""Every file of conf/ is composed and parsed; keys that a user relies on do not go; every key is documented."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cdpo_lightning.config import RENAMED, FilesConfig, RunConfig, parse
from cdpo_lightning.config.messages import group_classes

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
    """Return the full keys of everything that holds a value, such as `policy.beta`."""
    if not isinstance(values, dict):
        return [prefix]
    return [key for name, value in values.items() for key in flat(value, f"{prefix}.{name}" if prefix else str(name))]


def keys(config: DictConfig) -> list[str]:
    return sorted(flat(OmegaConf.to_container(config)))


def with_model(choice: str) -> list[str]:
    """Return the overrides that a choice needs: a model built here knows only the words of the closed-form world."""
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


def test_no_key_of_an_earlier_version_goes_without_a_hint() -> None:
    """A key that goes is in `RENAMED` and in CHANGELOG.md. Added keys are free; they join the file with a release."""
    gone = set(GOLDEN.read_text(encoding="utf-8").split()) - set(keys(composed()))
    assert gone <= set(RENAMED)
    assert {RENAMED[key] for key in gone} <= set(keys(composed()))


def test_the_keys_of_the_contract_never_move() -> None:
    known = keys(composed())
    assert [key for key in NEVER_MOVE if key not in known] == []
    for group in ("model", "dataset", "trainer", "logger", "method"):
        assert any(key == group or key.startswith(f"{group}.") for key in known)


def test_every_field_of_every_group_has_a_value_in_the_yaml() -> None:
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


def all_keys() -> list[str]:
    """Every key of every group in full, and those at the top; the sizes of a model are one key."""
    result = []
    for field in dataclasses.fields(RunConfig):
        kinds = group_classes(RunConfig).get(field.name, ())
        result += [f"{field.name}.{key.name}" for kind in kinds for key in dataclasses.fields(kind)] or [field.name]
    return [key for key in result if key != "external_policies"]


def documented_keys() -> list[str]:
    """The keys at the beginning of the list items of docs/configuration.md; `.lr` after `sft.epochs` is `sft.lr`."""
    _, _, text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").partition("\n## ")  # after the list of groups
    result: list[str] = []
    for item in re.findall(r"^- (`[^:]*):", text, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", re.sub(r"\([^)]*\)", "", item)):
            result.append(result[-1].partition(".")[0] + name if name.startswith(".") else name)
    return result


def test_every_key_is_documented_once() -> None:
    scorer = [key for key in all_keys() if key.startswith("cost.")]  # documented as reward.*
    documented = [key for key in documented_keys() if not key.startswith(("hydra", "+"))]
    assert [key for key in all_keys() if key not in documented and key not in scorer and not key.endswith((".kind", ".name"))] == []
    assert [key for key in documented if key not in all_keys()] == []
    assert len(documented) == len(set(documented))


def test_the_documentation_names_every_file_of_every_group() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert [name for name in FILES if f"`{name.rpartition('/')[2]}`" not in text] == []
