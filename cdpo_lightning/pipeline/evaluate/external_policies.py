"""External policies: any Hugging Face model, evaluated like the policies that a run trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cdpo_lightning.config import ModelConfig, RunConfig
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.pipeline.base_model import make_encoder, require_context, tokenizer_hash
from cdpo_lightning.pipeline.evaluate.policies import Candidate, make_candidates
from cdpo_lightning.pipeline.prepare import EvaluationSetup


def with_first_policy_as_reference(config: RunConfig) -> RunConfig:
    """Return the configuration; without a `model.path`, with the first external policy as its model and without SFT.

    Raises:
        ConfigError: without a `model.path`, `reward.path` or `cost.path` is empty; score models trained on the external policy
            would differ from policy to policy.
    """
    if not config.external_only:
        return config
    for name in ("reward", "cost"):
        if not getattr(config, name).path:
            raise ConfigError(f"{name}.path is empty: to evaluate policy=FOLDER without a model.path, name the score models to use")
    stages = [stage for stage in config.stages if stage != "sft"]
    return replace(config, stages=stages, model=_model(config, config.external_policies[0]))


def external_candidates(config: RunConfig, setup: EvaluationSetup) -> list[Candidate]:
    """Return the external policies, preceded by the reference unless the first of them is the reference."""
    is_reference = _model(config, config.external_policies[0]) == config.model
    reference = [] if is_reference else make_candidates(setup.evaluator.reference, {}, "sft" in config.stages)
    pairs = zip(config.external_names, config.external_policies, strict=True)
    return reference + [_candidate(config, setup, who, path) for who, path in pairs]


def _model(config: RunConfig, path: str) -> ModelConfig:
    """Return the run's model settings (template, lengths) for another model: a folder, or `owner/name@revision`."""
    name, _, revision = (path, "", "") if Path(path).exists() else path.partition("@")
    return replace(config.model, path=name, gguf_file="", revision=revision or None)


def _candidate(config: RunConfig, setup: EvaluationSetup, who: str, path: str) -> Candidate:
    """Return the external policy, with an encoder of its own unless it can share that of the reference.

    The encoder is shared, and the KL to the reference measured, if both have the same tokenizer and end tokens and are different
    models.
    """
    own = _model(config, path)
    require_context(own)
    tokenizer = causal_lm.load_tokenizer(own)
    model = causal_lm.load(own).to(setup.inference.device).requires_grad_(False)
    encoder, runs = make_encoder(own, tokenizer), setup.evaluator.encoder
    same_tokens = tokenizer_hash(tokenizer) == tokenizer_hash(runs.tokenizer) and set(encoder.stops) == set(runs.stops)
    return Candidate(model, (who,), None if own != config.model and same_tokens else encoder)
