"""The model that a run starts from: its copies that are trained, and what the artifacts of a stage depend on."""

from dataclasses import replace

import pytest
import torch

from cdpo_lightning.config import FitConfig, ModelConfig
from cdpo_lightning.data.corpus import Split
from cdpo_lightning.data.records import Demonstration
from cdpo_lightning.data.world import grammar
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.models.lm.causal_lm import parameter_hash, word_tokenizer
from cdpo_lightning.pipeline.base_model import (
    IdentifiedModel,
    StageInputs,
    load_base,
    load_tokenizer,
    make_encoder,
    make_trainables,
    require_context,
    restored,
)
from cdpo_lightning.store.artifacts import Artifact, digest

CPU = torch.device("cpu")
ROWS = [((3,), [(4, 1), (5, 6, 7, 1)]), ((6, 7), [(8, 1)])]


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def trainables(config):
    return lambda **model: make_trainables(replace(config, model=replace(config.model, **model)), CPU)


# Trainables.copy_of


def test_a_copy_is_trained_whole_and_shares_nothing(trainables, make_model, inference):
    model = make_model().requires_grad_(False)
    copy = trainables().copy_of(model)
    assert trained_names(copy) == dict(copy.named_parameters()).keys()
    assert not trained_names(model)
    before = inference.logp(model, ROWS)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(inference.logp(model, ROWS), before, rtol=0, atol=0)


def test_of_the_last_layers_nothing_below_is_trained(trainables, make_model):
    copy = trainables(trainable_layers=1).copy_of(make_model())
    assert trained_names(copy) == {
        name for name, _ in copy.named_parameters() if name.startswith(("model.layers.1.", "model.norm."))
    }


@pytest.mark.parametrize("strategy", ["auto", "deepspeed_zero3"])
def test_adapters_alone_are_trained_and_change_nothing_at_first(config, make_model, inference, strategy):
    """Without ZeRO-3 they share the weights beneath them, which frees the memory of one model; with it they do not."""
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    trainer = replace(config.trainer, strategy=strategy)
    model = make_model()
    copy = make_trainables(replace(config, trainer=trainer, model=replace(config.model, lora_rank=2)), CPU).copy_of(model)
    assert trained_names(copy)
    assert all("lora_" in name for name in trained_names(copy))
    torch.testing.assert_close(inference.logp(copy, ROWS), inference.logp(model, ROWS), rtol=0, atol=1e-5)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in copy.parameters()}
    assert bool(shared) == (strategy == "auto")


def test_adapters_depend_on_the_seed_alone(config, make_model):
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    config = replace(config, model=replace(config.model, lora_rank=2))
    names = [parameter_hash(make_trainables(replace(config, seed=s), CPU).copy_of(make_model())) for s in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


# The base model


def test_the_base_model_depends_on_the_seed_alone(config):
    tokenizer = load_tokenizer(config.model)
    torch.manual_seed(3)
    bases = [load_base(make_trainables(replace(config, seed=seed), CPU), tokenizer) for seed in (0, 0, 1)]
    assert bases[0].identity == bases[1].identity == parameter_hash(bases[0].model)
    assert bases[0].identity != bases[2].identity


def test_restored_weights_are_those_of_the_artifact(make_model):
    source, model = make_model(1), make_model(0).requires_grad_(False).train()
    result = restored(model, Artifact("key", dict(source.named_parameters()), {}), CPU)
    assert parameter_hash(result) == parameter_hash(source)
    assert not result.training
    assert trained_names(result) == dict(result.named_parameters()).keys()


def test_lengths_beyond_the_models_context_are_refused(config):
    """The model reads 64 tokens."""
    require_context(replace(config.model, max_prompt_tokens=40, max_response_tokens=24))
    with pytest.raises(ConfigError, match=r"model.max_prompt_tokens \+ model.max_response_tokens = 65: .*64"):
        require_context(replace(config.model, max_prompt_tokens=41, max_response_tokens=24))


# StageInputs.made_of


DATA = Split([Demonstration("p", "a", row="x:1"), Demonstration("q", "b", row="x:2")], [Demonstration("r", "c")])


@pytest.fixture
def named(config, store, settings, inference, encoder):
    """The name of a stage's artifact, as the store gives it, when parts of its inputs are others."""

    def name(fit=config.sft, data=DATA, base="weights", words=(), **changes):
        run = replace(config, **changes)
        tokenizer = word_tokenizer([*grammar.vocabulary(), *words])
        inputs = StageInputs(
            config=run,
            corpus=None,
            encoder=replace(encoder, tokenizer=tokenizer),
            base=IdentifiedModel(None, base),
            trainables=make_trainables(run, CPU),
            inference=inference,
            store=store,
            settings=settings,
        )
        return digest(dict(inputs.made_of(fit, data)))

    return name


def test_an_artifact_has_another_name_when_anything_changes_that_it_depends_on(named, config):
    longer = replace(config.model, max_response_tokens=23)
    split = Split(DATA.train, [Demonstration("r", "another")])
    bf16 = replace(config.trainer, precision="bf16-mixed")
    accumulate = replace(config.trainer, accumulate_grad_batches=2)
    names = [
        named(),
        named(base="other weights"),
        named(words=("new",)),
        named(data=Split(DATA.train[:1], DATA.held_out)),
        named(data=Split(DATA.train[::-1], DATA.held_out)),
        named(data=split),
        named(fit=FitConfig(epochs=2)),
        named(fit=FitConfig(lr=2e-3)),
        named(model=longer),
        named(model=replace(config.model, lora_rank=2)),
        named(model=replace(config.model, template="chat")),
        named(model=replace(config.model, template="chat", template_options={"enable_thinking": False})),
        named(model=replace(config.model, stop=["<unk>"])),
        named(model=replace(config.model, lora_rank=3)),
        named(seed=1),
        named(trainer=bf16),
        named(trainer=accumulate),
    ]
    assert len(set(names)) == len(names)


def test_names_and_what_is_not_used_do_not_change_the_name_of_an_artifact(named, config):
    trainer = replace(config.trainer, devices=2, inference_batch=3, keep_checkpoints=2)
    folder = replace(config.model, name="another name", revision="main", lora_merge=False, lora_alpha=3.0)
    assert {
        named(),
        named(name="another run", run_dir="elsewhere", artifacts_dir="elsewhere", mode="check"),
        named(model=folder),
        named(trainer=trainer),
        named(constraint=replace(config.constraint, c_limit=0.3)),
        named(policy=replace(config.policy, beta=2.0)),
        named(stages=["sft"]),
    } == {named()}


def test_the_encoder_has_the_models_template_and_lengths(config, tokenizer):
    model = replace(config.model, template="beaver", max_prompt_tokens=5, max_response_tokens=6)
    encoder = make_encoder(model, tokenizer)
    assert (encoder.tokenizer, encoder.template, encoder.max_prompt, encoder.max_response) == (tokenizer, "beaver", 5, 6)


def test_a_model_that_is_loaded_has_the_tokenizer_of_its_folder(tmp_path):
    word_tokenizer(["only", "these"]).save_pretrained(tmp_path)
    assert len(load_tokenizer(ModelConfig(path=str(tmp_path)))) == 5
