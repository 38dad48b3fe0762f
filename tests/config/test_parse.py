"""Every mistake that can be made in a configuration is refused, with its key; what is composed is what runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cdpo_lightning.config import ModelConfig, RunConfig, ScorerConfig, parse, plain, to_yaml
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


def test_nothing_below_the_door_is_omegaconf_or_can_be_changed(default: dict[str, Any]) -> None:
    config = parse(default)
    parts = [config, *(getattr(config, group) for group in GROUPS)]
    assert all(dataclasses.is_dataclass(part) for part in parts)
    assert not any(OmegaConf.is_config(value) for part in parts for value in vars(part).values())
    for part in parts:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)


def test_what_is_kept_in_a_runs_folder_gives_the_same_configuration(default: dict[str, Any]) -> None:
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
    "constraint.kind": ["soft"], "constraint.update": ["adam"], "constraint.lambda_init": [-0.1, "two_shot", 20.5],
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
def test_an_unknown_key_is_refused_and_the_known_ones_are_said(default: dict[str, Any], group: str) -> None:
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
def test_a_slip_is_answered_with_what_was_meant(key: str, meant: str) -> None:
    message = no_such_key(key)
    assert message.startswith(f"{key}: no such key; ")
    assert (f"did you mean {meant}?" in message) == bool(meant)


@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8), max_size=4))
def test_nothing_but_our_error_comes_out_of_any_group(values: dict[str, Any]) -> None:
    """Whatever stands in a YAML file: refused, never a fault."""
    whole = dict.fromkeys([*GROUPS, "name", "seed", "mode", "stages", "resume", "run_dir", "artifacts_dir"], values)
    with pytest.raises(CDPOError):
        parse(whole)


def test_an_interpolation_that_leads_nowhere_is_refused_by_its_key() -> None:
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
    "model.compile=True: expected false with ZeRO-3": {"model.compile": True, "trainer.strategy": "deepspeed_zero3"},
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


def test_a_model_built_here_knows_no_words_but_the_worlds(default: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^model\.path is empty"):
        parse({**default, "dataset": composed("dataset=pku_saferlhf")["dataset"]})


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 64}, {"vocab_size": 10}])
def test_a_model_is_built_from_exactly_its_sizes(default: dict[str, Any], sizes: dict[str, int]) -> None:
    """A size left out would be that of a Llama of seven billion parameters."""
    values = changed(default, "model.architecture", sizes)
    with pytest.raises(ConfigError, match=r"^model\.architecture\.\w+: expected exactly these"):
        parse(values)
    assert isinstance(parse(changed(values, "model.path", "somewhere")), RunConfig)


def test_a_group_made_by_hand_checks_itself() -> None:
    with pytest.raises(ConfigError, match=r"^lr=-1: expected more than 0"):
        ScorerConfig(lr=-1)
    with pytest.raises(ConfigError, match=r"^model\.template=x: expected one of"):
        ModelConfig(template="x")


def test_the_identity_names_the_result_and_not_the_place(default: dict[str, Any]) -> None:
    same = {"run_dir": "there", "artifacts_dir": "there", "resume": True, "mode": "check", "logger.kind": "csv"}
    one = parse(default).identity()
    assert {parse(changed(default, key, value)).identity() for key, value in same.items()} == {one}
    other = {"seed": 1, "policy.beta": 0.51, "constraint.c_limit": -0.4, "stages": ["sft"], "dataset.prompts": 16, "name": "x"}
    assert len({parse(changed(default, key, value)).identity() for key, value in other.items()} | {one}) == len(other) + 1


@pytest.mark.parametrize(("kind", "who"), [("dual", "cdpo"), ("fixed", "cdpo_fixed"), ("none", "dpo")])
def test_the_constraint_names_the_method(default: dict[str, Any], kind: str, who: str) -> None:
    assert parse(changed(default, "constraint.kind", kind)).who == who


@pytest.mark.parametrize("value", ["1", "1.0"])
def test_a_whole_number_is_a_lambda(value):
    """The paper's own row is lambda = 1, and it is one run however it is written."""
    one = parse(composed(f"constraint.lambda_init={value}"))
    assert one.constraint.lambda_init == 1.0
    assert one.identity() == parse(composed("constraint.lambda_init=1.0")).identity()


def test_a_recipe_replaces_the_runs_values_and_leaves_the_rest(default) -> None:
    config = parse(changed(default, "constraint.lambda_lr", 0.3))
    paper = config.plan("cdpo_paper")
    assert (paper.policy.labels, paper.policy.refresh, paper.constraint.update) == ("bernoulli", 0, "projected")
    assert (paper.policy.beta, paper.constraint.lambda_lr) == (config.policy.beta, 0.3)
    assert config.plan("cdpo").policy == config.policy
    assert config.plan("cdpo").constraint == config.constraint


def test_lambda_of_the_runs_own_and_of_those_beside(default) -> None:
    """constraint.lambda_init is the run's own; beside it method.fixed_lambda; always method.cost_only_lambda and PPO-Lag's own."""
    config = parse(changed(changed(default, "constraint.lambda_init", 0.2), "method.fixed_lambda", 0.4))
    assert {who: config.plan(who).constraint.lambda_init for who in ("cdpo", "cdpo_fixed", "sacpo", "cost_only", "ppo_lag")} == {
        "cdpo": 0.2, "cdpo_fixed": 0.4, "sacpo": 0.4, "cost_only": 10.0, "ppo_lag": 1.0,
    }  # fmt: skip
    alone = parse(changed(changed(default, "constraint.kind", "fixed"), "constraint.lambda_init", 0.2))
    assert alone.who == "cdpo_fixed"
    assert alone.plan("cdpo_fixed").constraint.lambda_init == 0.2
    cost_only = parse(changed(changed(default, "constraint.kind", "fixed"), "method.name", "cost_only"))
    assert (cost_only.who, cost_only.plan("cost_only").constraint.lambda_init) == ("cost_only", 10.0)


def test_a_method_that_does_not_go_with_the_constraint_is_refused(default) -> None:
    with pytest.raises(ConfigError, match=r"constraint.kind=dual: method=sacpo has fixed; choose constraint=fixed"):
        parse(changed(default, "method.name", "sacpo"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.name", "pdpo"), ("method.baselines", ["rlhf"]), ("method.preferences", "mine"), ("method.fixed_lambda", -1.0),
        ("method.fixed_lambda", "guess"), ("primal_dual.pairs", "some"), ("primal_dual.labels", "argmax"), ("primal_dual.asks", 1),
        ("primal_dual.feedback", "none"), ("primal_dual.bonus", -0.1), ("primal_dual.online", -1), ("primal_dual.epochs", 0),
        ("primal_dual.reward_epochs", 0), ("ppo.rounds", 0), ("ppo.samples_per_prompt", 1), ("ppo.clip", 0.0), ("ppo.kl", -0.1),
        ("ppo.lambda_init", 0.0), ("ppo.gamma", 1.5), ("ppo.gae_lambda", 1.1), ("dataset.withheld", 0.6),
    ],
)  # fmt: skip
def test_a_value_of_a_methods_groups_that_is_out_of_range_is_refused(default, key, value) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        parse(changed(default, key, value))


@pytest.mark.parametrize(
    "overrides", [[], ["trainer=deepspeed_cpu", "method=o_pd_dpo"], ["model=smollm2_135m", "dataset=pku_saferlhf"]]
)
def test_every_rank_reads_the_configuration_that_was_started(overrides: list[str]) -> None:
    config = parse(composed(*overrides))
    assert parse(json.loads(json.dumps(plain(config)))) == config
