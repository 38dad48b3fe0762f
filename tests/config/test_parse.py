"""Every mistake in a configuration is refused with its key, and what is composed is what runs."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cdpo_lightning.config import (
    METHODS,
    RENAMED,
    ConstraintConfig,
    ModelConfig,
    PolicyConfig,
    RunConfig,
    ScorerConfig,
    TrainerConfig,
    json_schema,
    parse,
    plain,
    to_yaml,
)
from cdpo_lightning.config.parse import no_such_key
from cdpo_lightning.errors import CDPOError, ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
GROUPS = (
    "model",
    "dataset",
    "sft",
    "reward",
    "cost",
    "policy",
    "constraint",
    "method",
    "primal_dual",
    "ppo",
    "evaluation",
    "generation",
    "trainer",
    "logger",
)


def composed(*overrides: str) -> dict[str, Any]:
    """The configuration as plain data, as a user's overrides make it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", ["run_dir=here", *overrides])
    return OmegaConf.to_container(config, resolve=True)


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return composed()


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one value changed; `key` may have dots."""
    head, _, rest = key.partition(".")
    return {**values, head: changed(values[head], rest, value) if rest else value}


def test_a_parsed_configuration_is_frozen_and_holds_nothing_of_omegaconf(default: dict[str, Any]) -> None:
    config = parse(default)
    parts = [config, *(getattr(config, group) for group in GROUPS)]
    assert all(dataclasses.is_dataclass(part) for part in parts)
    assert not any(OmegaConf.is_config(value) for part in parts for value in vars(part).values())
    for part in parts:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)


def test_the_yaml_of_a_runs_folder_gives_the_same_configuration(default: dict[str, Any]) -> None:
    config = parse(default)
    assert parse(OmegaConf.create(to_yaml(config))) == config


def test_every_value_arrives_where_it_was_set(default: dict[str, Any]) -> None:
    config = parse(changed(changed(default, "policy.beta", 0.25), "cost.lr", 1e-5))
    assert (config.policy.beta, config.cost.lr, config.reward.lr) == (0.25, 1e-5, default["reward"]["lr"])
    assert parse(changed(default, "constraint.lambda_init", "one_shot")).constraint.lambda_init == "one_shot"


OUT_OF_RANGE = {
    "mode": ["train", ""], "seed": [-1, 2**32], "stages": [["sft", "ppo"]],
    "model.template": ["alpaca"], "model.attention": ["flash"], "model.max_prompt_tokens": [0], "model.max_response_tokens": [1],
    "model.scorer_layers": [-1],
    "dataset.kind": ["hub"], "dataset.prompts": [7, 65], "dataset.responses": [4, 32, 65], "dataset.pairs_per_prompt": [0],
    "dataset.demonstrations_per_prompt": [0], "dataset.correlation": [0.9, -0.9], "dataset.risk_share": [-0.1, 0.3],
    "dataset.off_grammar_share": [-0.1, 1.0], "dataset.scores": ["true"],
    "sft.epochs": [0], "sft.batch_size": [0], "sft.lr": [0.0, -1e-3], "sft.weight_decay": [-0.1], "sft.warmup": [-0.1, 1.0],
    "reward.lr": [0.0], "cost.epochs": [0], "reward.template": ["alpaca"], "cost.max_tokens": [1],
    "policy.beta": [0.0, -0.1], "policy.labels": ["hard"], "policy.loss": ["kto"], "policy.label_smoothing": [-0.1, 0.5],
    "policy.refresh": [-1], "policy.refresh_window": [0], "policy.anchor": [-0.1], "policy.anchor_responses": [1],
    "policy.epochs": [0], "policy.batch_size": [0], "policy.pairs_per_row": [0], "policy.lr": [0.0],
    "policy.lr_final": [0.0, 1.1], "policy.weight_decay": [-0.1], "policy.gradient_clip": [-1.0],
    "constraint.kind": ["soft"], "constraint.lambda_init": [-0.1, "two_shot", 20.5],
    "constraint.lambda_lr": [0.0], "constraint.lambda_max": [0.0], "constraint.proportional": [-1.0],
    "constraint.damping": [0.0, 1.1], "constraint.max_step": [0.0], "constraint.every_k_epochs": [0, 1000],
    "constraint.prompts": [-1], "constraint.samples_per_prompt": [1], "constraint.one_shot_samples": [1],
    "method.baselines": [["ppo"]], "method.cost_only_lambda": [0.0],
    "evaluation.prompts": [-1], "evaluation.samples_per_prompt": [0],
    "generation.engine": ["tgi"], "generation.gpu_memory": [0.0, 1.0],
    "trainer.accelerator": ["tpu"], "trainer.precision": ["16"], "trainer.devices": [0], "trainer.num_nodes": [0],
    "trainer.accumulate_grad_batches": [0], "trainer.inference_batch": [0], "trainer.sample_batch": [0],
    "trainer.num_threads": [-1],
    "logger.kind": ["mlflow"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values])
def test_a_value_out_of_range_is_refused_by_its_key(default: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(default, key, value))
    message = str(caught.value)
    assert message.startswith(f"{key}=")
    assert "expected" in message
    assert "\n" not in message


WRONG_TYPE = {
    "name": [3, None], "seed": ["x", 1.5, True], "mode": [1], "stages": ["sft", None], "resume": [1, "yes"], "run_dir": [None],
    "policy": [3, "x", [], None], "policy.beta": ["x", True, None, [0.5], {"a": 1}], "policy.epochs": [1.5, True, "x", None],
    "sft.lr": ["x"], "reward.unit_sd": ["x", 7], "cost.path": [None], "method.baselines": ["dpo", None],
    "constraint.lambda_init": [True, None, [1]], "model.architecture": [3, [64]], "model.architecture.hidden_size": ["x", 1.5],
    "trainer.devices": ["auto"], "dataset.responses": ["many"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_TYPE.items() for value in values])
def test_a_value_of_the_wrong_type_is_refused_by_its_key(default: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(default, key, value))
    assert str(caught.value).startswith((f"{key}:", f"{key}="))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["policy.beta", "constraint.c_limit", "sft.lr", "dataset.off_grammar_cost"])
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused(default: dict[str, Any], key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}={value}: expected a finite number"):
        parse(changed(default, key, value))


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_an_unknown_key_is_refused_with_the_known_ones(default: dict[str, Any], group: str) -> None:
    key = f"{group}.c_limt" if group else "c_limt"
    with pytest.raises(ConfigError, match=rf"^{key}: no such key; .*{group or 'the top level'} has "):
        parse(changed(default, key, 1))


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_a_missing_key_is_refused(default: dict[str, Any], group: str) -> None:
    for key in sorted((default[group] if group else default).keys() - {"kind"})[-2:]:
        values = {**default, group: {k: v for k, v in default[group].items() if k != key}} if group else default
        values = values if group else {k: v for k, v in default.items() if k != key}
        full = f"{group}.{key}" if group else key
        with pytest.raises(ConfigError, match=rf"^{full}: missing; give it a value"):
            parse(values)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("constraint.c_limt", "constraint.c_limit"), ("polcy", "policy"), ("sft.learning_rate", ""), ("policy.beta.x", "policy.beta")],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(key: str, meant: str) -> None:
    message = no_such_key(key)
    assert message.startswith(f"{key}: no such key; ")
    assert (f"did you mean {meant}?" in message) == bool(meant)


@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8), max_size=4))
def test_nothing_but_our_error_comes_out_of_any_group(values: dict[str, Any]) -> None:
    """Whatever a YAML file holds: refused, never a fault of ours."""
    whole = dict.fromkeys([*GROUPS, "name", "seed", "mode", "stages", "resume", "run_dir", "artifacts_dir"], values)
    with pytest.raises(CDPOError):
        parse(whole)


def test_an_interpolation_of_an_unknown_key_is_refused_by_the_key_that_has_it() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", ["run_dir=here", "policy.beta=${nowhere}"])
        missing = compose("config", ["run_dir=here", "name=${oc.env:CDPO_NO_SUCH_VARIABLE}"])
    with pytest.raises(ConfigError, match=r"^policy\.beta: .*nowhere"):
        parse(config)
    with pytest.raises(ConfigError, match=r"^name: .*CDPO_NO_SUCH_VARIABLE"):
        parse(missing)


CROSSED = {
    "constraint.lambda_init=0.0: expected more than 0": {"constraint.update": "log"},
    "model.architecture.hidden_size=63": {"model.architecture.hidden_size": 63},
    "model.architecture.num_key_value_heads=3": {"model.architecture.num_key_value_heads": 3},
    "model.architecture.num_hidden_layers=0": {"model.architecture.num_hidden_layers": 0},
    "trainer.gather=layer: expected whole": {"trainer.gather": "layer"},
    "model.quantize=nf4: expected empty unless model.lora_rank": {"model.quantize": "nf4"},
    "model.quantize=nf4: expected empty with ZeRO-3": {
        "model.lora_rank": 4,
        "model.quantize": "nf4",
        "trainer.strategy": "deepspeed_zero3",
    },
    "model.quantize=nf4: expected empty with ppo_lag": {
        "model.lora_rank": 4,
        "model.quantize": "nf4",
        "method.baselines": ["ppo_lag"],
    },
    "generation.engine=vllm: expected torch with trainer.gather=layer": {
        "generation.engine": "vllm",
        "trainer.gather": "layer",
        "trainer.strategy": "deepspeed_zero3",
    },
    "model.attention=flex_attention: expected sdpa or eager with model.path empty": {"model.attention": "flex_attention"},
    "model.attention=flex_attention: expected sdpa or eager with trainer.accelerator=cpu": {
        "model.path": "somewhere",
        "model.attention": "flex_attention",
    },
    "model.compile=true: expected false with ZeRO-3": {"model.compile": True, "trainer.strategy": "deepspeed_zero3"},
    "constraint.every_k_epochs=17": {"constraint.every_k_epochs": 17, "policy.epochs": 16},
}


@pytest.mark.parametrize("message", CROSSED)
def test_values_that_do_not_go_together_are_refused(default: dict[str, Any], message: str) -> None:
    values = default
    for key, value in CROSSED[message].items():
        values = changed(values, key, value)
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert str(caught.value).startswith(message)


def test_a_model_built_here_needs_the_closed_form_world(default: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^model\.path is empty"):
        parse({**default, "dataset": composed("dataset=pku_saferlhf")["dataset"]})


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 64}, {"vocab_size": 10}])
def test_a_model_is_built_from_exactly_its_sizes(default: dict[str, Any], sizes: dict[str, int]) -> None:
    """The library would replace a missing size by that of a Llama of seven billion parameters."""
    values = changed(default, "model.architecture", sizes)
    with pytest.raises(ConfigError, match=r"^model\.architecture\.\w+: expected exactly these"):
        parse(values)
    assert isinstance(parse(changed(values, "model.path", "somewhere")), RunConfig)


def test_a_group_made_by_hand_checks_itself() -> None:
    with pytest.raises(ConfigError, match=r"^lr=-1: expected more than 0"):
        ScorerConfig(lr=-1)
    with pytest.raises(ConfigError, match=r"^model\.template=x: expected one of"):
        ModelConfig(template="x")


def test_the_identity_depends_on_what_changes_the_result_only(default: dict[str, Any]) -> None:
    same = {"run_dir": "there", "artifacts_dir": "there", "resume": True, "mode": "check", "logger.kind": "csv"}
    one = parse(default).identity()
    assert {parse(changed(default, key, value)).identity() for key, value in same.items()} == {one}
    other = {"seed": 1, "policy.beta": 0.51, "constraint.c_limit": -0.4, "stages": ["sft"], "dataset.prompts": 16, "name": "x"}
    assert len({parse(changed(default, key, value)).identity() for key, value in other.items()} | {one}) == len(other) + 1


@pytest.mark.parametrize(("kind", "who"), [("dual", "cdpo"), ("fixed", "cdpo_fixed"), ("none", "dpo")])
def test_the_constraint_names_the_method(default: dict[str, Any], kind: str, who: str) -> None:
    assert parse(changed(default, "constraint.kind", kind)).who == who


@pytest.mark.parametrize("value", ["1", "1.0"])
def test_a_whole_number_is_a_lambda(value: str) -> None:
    """The paper's own row is lambda = 1, and it is one run however it is written."""
    one = parse(composed(f"constraint.lambda_init={value}"))
    assert one.constraint.lambda_init == 1.0
    assert one.identity() == parse(composed("constraint.lambda_init=1.0")).identity()


def test_a_method_replaces_the_values_it_sets_and_leaves_the_rest(default: dict[str, Any]) -> None:
    config = parse(changed(default, "constraint.lambda_lr", 0.3))
    paper = config.resolve_method("cdpo_paper")
    assert (paper.policy.labels, paper.policy.refresh, paper.constraint.update) == ("bernoulli", 0, "projected")
    assert (paper.policy.beta, paper.constraint.lambda_lr) == (config.policy.beta, 0.3)
    assert config.resolve_method("cdpo").policy == config.policy
    assert config.resolve_method("cdpo").constraint == config.constraint


def test_where_lambda_of_each_method_comes_from(default: dict[str, Any]) -> None:
    """The run's own method: constraint.lambda_init. Baselines: method.fixed_lambda. cost_only and PPO-Lag: keys of their own."""
    config = parse(changed(changed(default, "constraint.lambda_init", 0.2), "method.fixed_lambda", 0.4))
    expected = {"cdpo": 0.2, "cdpo_fixed": 0.4, "sacpo": 0.4, "cost_only": 10.0, "ppo_lag": 1.0}
    assert {who: config.resolve_method(who).constraint.lambda_init for who in expected} == expected
    fixed = parse(changed(changed(default, "constraint.kind", "fixed"), "constraint.lambda_init", 0.2))
    assert fixed.who == "cdpo_fixed"
    assert fixed.resolve_method("cdpo_fixed").constraint.lambda_init == 0.2
    cost_only = parse(changed(changed(default, "constraint.kind", "fixed"), "method.name", "cost_only"))
    assert (cost_only.who, cost_only.resolve_method("cost_only").constraint.lambda_init) == ("cost_only", 10.0)


def test_a_method_that_does_not_go_with_the_constraint_is_refused(default: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"constraint.kind=dual: method=sacpo has fixed; choose constraint=fixed"):
        parse(changed(default, "method.name", "sacpo"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.name", "pdpo"), ("method.baselines", ["rlhf"]), ("method.preferences", "mine"), ("method.fixed_lambda", -1.0),
        ("method.fixed_lambda", "guess"), ("primal_dual.pairs", "some"), ("primal_dual.labels", "argmax"), ("primal_dual.asks", 1),
        ("primal_dual.feedback", "none"), ("primal_dual.bonus", -0.1), ("primal_dual.refresh", -1), ("primal_dual.epochs", 0),
        ("primal_dual.reward_epochs", 0), ("ppo.rounds", 0), ("ppo.samples_per_prompt", 1), ("ppo.clip", 0.0), ("ppo.kl", -0.1),
        ("ppo.lambda_init", 0.0), ("ppo.gamma", 1.5), ("ppo.gae_lambda", 1.1), ("dataset.withheld", 0.6),
    ],
)  # fmt: skip
def test_a_value_of_a_methods_groups_that_is_out_of_range_is_refused(default: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        parse(changed(default, key, value))


@pytest.mark.parametrize(
    "overrides", [[], ["trainer=deepspeed_cpu", "method=o_pd_dpo"], ["model=smollm2_135m", "dataset=pku_saferlhf"]]
)
def test_every_rank_reads_the_same_configuration_from_json(overrides: list[str]) -> None:
    config = parse(composed(*overrides))
    assert parse(json.loads(json.dumps(plain(config)))) == config


def test_a_plain_configuration_of_external_policies_is_read_again(default: dict[str, Any]) -> None:
    config = parse({**default, "mode": "evaluate", "policy": "runs/a+runs/b"})
    assert (config.external_policies, config.external_names) == (("runs/a", "runs/b"), ("policy_1", "policy_2"))
    assert parse(plain(config)) == config


NEVER_COERCED = [
    ("policy.epochs", "3"), ("policy.epochs", 3.0), ("seed", True), ("policy.beta", "0.5"), ("policy.beta", True),
    ("model.compile", "true"), ("model.compile", 1), ("model.compile", 0), ("reward.sign", True), ("dataset.responses", "64"),
    ("name", 1), ("name", True), ("policy.beta", "inf"), ("policy.beta", "nan"), ("constraint.c_limit", "-inf"),
    ("constraint.lambda_init", "inf"), ("constraint.update_options", {"kd": "nan"}), ("constraint.update_options", {"kd": "1"}),
    ("method.baselines", "dpo"), ("method.baselines", [1]), ("model.revision", 3),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), NEVER_COERCED)
def test_no_value_is_silently_turned_into_another_type(default: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(default, key, value))
    assert str(caught.value).startswith((f"{key}=", f"{key}."))
    assert "expected" in str(caught.value)


def test_a_whole_number_is_read_as_a_number(default: dict[str, Any]) -> None:
    beta = parse(changed(default, "policy.beta", 2)).policy.beta
    assert (beta, type(beta)) == (2.0, float)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_in_a_mapping_that_is_not_finite_is_refused(default: dict[str, Any], value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^constraint\.update_options\.kd={value}: expected a finite number"):
        parse(changed(default, "constraint.update_options", {"kd": value}))


def test_settings_of_an_update_are_named_numbers(default: dict[str, Any]) -> None:
    assert parse(default).constraint.update_options == {}
    config = parse(changed(default, "constraint.update_options", {"kd": 1}))
    assert config.constraint.update_options == {"kd": 1.0}
    assert config.resolve_method("cdpo").constraint.update_options == {"kd": 1.0}
    assert config.resolve_method("pd_dpo").constraint.update_options == {}, "pd_dpo has another update"


def test_names_that_a_registry_owns_are_any_text(default: dict[str, Any]) -> None:
    assert parse(changed(default, "constraint.update", "mine")).constraint.update == "mine"


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_key_is_refused_with_its_new_name(default: dict[str, Any], old: str) -> None:
    new, config = RENAMED[old], parse(default)
    with pytest.raises(ConfigError, match=rf"^{re.escape(old)}: renamed to {re.escape(new)}$"):
        parse(changed(default, old, 1))
    assert functools.reduce(getattr, new.split("."), config) is not None


def test_of_several_mistakes_the_first_in_the_order_of_the_configuration_is_reported(default: dict[str, Any]) -> None:
    wrong = changed(changed(changed(default, "ppo.clip", -1.0), "policy.lr", -1.0), "policy.beta", -1.0)
    for values in (wrong, dict(reversed(wrong.items())), {**wrong, "policy": dict(reversed(wrong["policy"].items()))}):
        with pytest.raises(ConfigError, match=r"^policy\.beta=-1\.0: "):
            parse(values)
    with pytest.raises(ConfigError, match=r"^trainer\.divices: no such key"):
        parse(changed(wrong, "trainer.divices", 1))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sft.lr", -1, "sft.lr=-1: expected more than 0"),
        ("policy.epochs", 0, "policy.epochs=0: expected at least 1"),
        ("policy.epochs", 1.5, "policy.epochs=1.5: expected a whole number, at least 1"),
        ("policy.epochs", "3", "policy.epochs='3': expected a whole number, at least 1"),
        ("model.compile", "true", "model.compile='true': expected true or false"),
        ("dataset.prompts", 7, "dataset.prompts=7: expected 8 to 64"),
        ("sft.warmup", 1.0, "sft.warmup=1.0: expected [0, 1)"),
        ("constraint.prompts", -1, "constraint.prompts=-1: expected 0 (all) or more"),
        ("evaluation.samples_per_prompt", None, "evaluation.samples_per_prompt=null: expected a whole number, at least 1"),
        ("constraint.lambda_init", -1, "constraint.lambda_init=-1: expected a number, 0 or more; or one of one_shot, exact"),
        ("dataset.responses", 65, "dataset.responses=65: expected one of 16, 64, 256, 1024, 4096"),
    ],
)
def test_a_message_gives_the_key_the_value_and_what_was_expected(
    default: dict[str, Any], key: str, value: Any, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(default, key, value))
    assert str(caught.value) == expected


@pytest.mark.parametrize(("value", "near"), [("pdpo", "pd_dpo"), ("xyzzy", "")])
def test_a_choice_that_looks_like_a_slip_is_answered_with_the_nearest(default: dict[str, Any], value: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"^method\.name={value}: expected one of {', '.join(METHODS)}") as caught:
        parse(changed(default, "method.name", value))
    assert ("did you mean" in str(caught.value)) == bool(near)
    assert near in str(caught.value)


@pytest.mark.parametrize("key", ["policy.loss", "policy.beta", "policy", "dataset.kind", "method.baselines"])
def test_a_long_value_is_shortened_in_a_message(default: dict[str, Any], key: str) -> None:
    values = {**default, "policy": ["x" * 500]} if key == "policy" else changed(default, key, "x" * 500)
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert re.search(r"x{60,80}\.\.\.", str(caught.value))
    assert "x" * 81 not in str(caught.value)


def test_a_group_made_in_code_is_checked_as_one_from_a_file() -> None:
    with pytest.raises(ConfigError, match=r"^policy\.betaa: no such key"):
        PolicyConfig(betaa=1)
    with pytest.raises(ConfigError, match=r"^policy\.beta='1': expected a number"):
        dataclasses.replace(PolicyConfig(), beta="1")
    with pytest.raises(ConfigError, match=r"^constraint\.lambda_init=3\.0: expected at most constraint\.lambda_max, 2"):
        ConstraintConfig(lambda_init=3, lambda_max=2)
    with pytest.raises(ConfigError, match=r"^trainer\.offload=true: expected false"):
        TrainerConfig(offload=True)
    assert ConstraintConfig(c_limit=1) == dataclasses.replace(ConstraintConfig(), c_limit=1.0)


def properties(schema: dict[str, Any], group: str) -> list[dict[str, Any]]:
    """The properties of each object that a group may be."""
    entry = schema["properties"][group]
    parts = entry.get("anyOf") or entry.get("oneOf") or [entry]
    named = [schema["$defs"][part["$ref"].rpartition("/")[2]] for part in parts if "$ref" in part]
    assert all(set(each["required"]) == set(each["properties"]) and each["additionalProperties"] is False for each in named)
    return [each["properties"] for each in named]


def test_the_json_schema_has_every_key_with_its_type_and_range(default: dict[str, Any]) -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["properties"]) == set(schema["required"]) == set(default)
    assert schema["additionalProperties"] is False
    for group in GROUPS:
        assert set(default[group]) in [set(each) for each in properties(schema, group)], group
    policy = properties(schema, "policy")[0]
    assert (policy["beta"]["type"], policy["beta"]["exclusiveMinimum"]) == ("number", 0)
    assert set(policy["loss"]["enum"]) == {"sigmoid", "ipo", "hinge"}
    assert properties(schema, "method")[0]["name"]["enum"] == list(METHODS)
    assert {"type": "string", "minLength": 1}.items() <= schema["properties"]["policy"]["anyOf"][1].items()


def test_the_configuration_is_imported_without_torch() -> None:
    """Else a typing error would be answered after seconds."""
    code = "import sys, cdpo_lightning.config; print(sorted({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
