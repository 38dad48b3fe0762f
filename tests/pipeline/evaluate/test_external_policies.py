"""Policies from outside: which model is the reference, which names they have, and to whom a KL is measured."""

from dataclasses import replace

import pytest
import torch

from cdpo_lightning.config import FilesConfig, ModelConfig, ScorerConfig
from cdpo_lightning.errors import ConfigError, ModelError
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.pipeline.evaluate.external_policies import external_candidates, with_first_policy_as_reference
from cdpo_lightning.pipeline.prepare import EvaluationSetup


@pytest.fixture
def folder(tmp_path, make_model, tokenizer):
    """A model with its tokenizer: `folder(name, seed)`."""

    def make(name, seed=0, words=None):
        own = causal_lm.word_tokenizer(words) if words else tokenizer
        path = tmp_path / name
        make_model(seed).save_pretrained(path)
        own.save_pretrained(path)
        return str(path)

    return make


@pytest.fixture
def evaluated(config):
    """A run that evaluates these policies, with the model of the configuration or without any."""

    def make(*policies, files=False, **changes):
        data = {"dataset": FilesConfig(pairs="pairs.jsonl"), "model": ModelConfig()} if files else {}
        return replace(config, mode="evaluate", external_policies=policies, **data, **changes)

    return make


PUBLISHED = {"reward": ScorerConfig(path="r"), "cost": ScorerConfig(path="c")}


# The reference


def test_with_a_model_of_its_own_the_configuration_stays(evaluated):
    config = evaluated("somewhere")
    assert with_first_policy_as_reference(config) == config


def test_without_a_model_the_first_policy_is_the_reference_and_there_is_no_sft(evaluated):
    config = evaluated("first", "second", files=True, **PUBLISHED, stages=["sft", "evaluate", "report"])
    result = with_first_policy_as_reference(config)
    assert result.model == replace(config.model, path="first")
    assert result.stages == ["evaluate", "report"]


@pytest.mark.parametrize("missing", ["reward", "cost"])
def test_without_a_model_both_score_models_must_be_named(evaluated, missing):
    config = evaluated("first", files=True, **{**PUBLISHED, missing: ScorerConfig()})
    with pytest.raises(ConfigError, match=rf"^{missing}\.path is empty: .*name the score models"):
        with_first_policy_as_reference(config)


def test_a_revision_is_part_of_a_hub_name_and_not_of_a_folder(evaluated, tmp_path):
    odd = tmp_path / "model@3"
    odd.mkdir()
    loaded = [
        with_first_policy_as_reference(evaluated(path, files=True, **PUBLISHED)).model for path in ("owner/name@abc", str(odd))
    ]
    assert [(model.path, model.revision) for model in loaded] == [("owner/name", "abc"), (str(odd), None)]


# The candidates


@pytest.fixture
def setup(stub_evaluator, inference, encoder):
    return EvaluationSetup(None, (), stub_evaluator(None, torch.nn.Linear(1, 1), encoder), inference, None)


def test_policies_come_after_the_reference(evaluated, setup, folder, tokenizer):
    """They read the same tokens as the reference, so that they need no encoder of their own and have a KL."""
    config = evaluated(folder("a", 1), folder("b", 2), stages=["sft", "evaluate"])
    reference, first, second = external_candidates(config, setup)
    assert (reference.model, reference.names) == (setup.evaluator.reference, ("reference", "sft"))
    assert (first.names, second.names) == (("policy_1",), ("policy_2",))
    assert first.encoder is None
    assert second.encoder is None
    assert causal_lm.parameter_hash(first.model) != causal_lm.parameter_hash(second.model)
    assert not any(parameter.requires_grad for parameter in first.model.parameters())


def test_a_single_policy_is_called_policy_and_the_reference_without_sft_is_not_called_so(evaluated, setup, folder):
    config = evaluated(folder("a"), stages=["evaluate"])
    assert [one.names for one in external_candidates(config, setup)] == [("reference",), ("policy",)]


def test_a_policy_with_other_tokens_has_an_encoder_of_its_own(evaluated, setup, folder, config):
    path = folder("a", words=["other", "words"])
    _, candidate = external_candidates(evaluated(path), setup)
    assert candidate.encoder is not None
    assert len(candidate.encoder.tokenizer) == 5
    lengths = (candidate.encoder.template, candidate.encoder.max_prompt, candidate.encoder.max_response)
    assert lengths == (config.model.template, config.model.max_prompt_tokens, config.model.max_response_tokens)


def test_the_policy_that_is_the_reference_is_evaluated_once_and_has_no_kl_to_itself(evaluated, setup, folder):
    paths = (folder("a", 1), folder("b", 2))
    config = with_first_policy_as_reference(evaluated(*paths, files=True, **PUBLISHED))
    first, second = external_candidates(config, setup)
    assert (first.names, second.names) == (("policy_1",), ("policy_2",))
    assert first.encoder is not None, "an encoder of its own: its KL is not measured"
    assert second.encoder is None


def test_lengths_beyond_a_policys_context_are_refused(evaluated, setup, folder, config):
    longer = replace(config.model, max_prompt_tokens=60)
    with pytest.raises(ConfigError, match=r"= 84: expected at most the model's context of 64"):
        external_candidates(evaluated(folder("a"), model=longer), setup)


def test_a_folder_that_is_no_model_is_refused(evaluated, setup, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        external_candidates(evaluated(str(tmp_path / "gone")), setup)
