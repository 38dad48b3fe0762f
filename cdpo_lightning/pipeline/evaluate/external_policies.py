"""Policies from outside: any Hugging Face model, to be judged like those trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cdpo_lightning.config import ModelConfig, RunConfig
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.pipeline.evaluate.policies import Candidate
from cdpo_lightning.pipeline.prepare import EvaluationSetup
from cdpo_lightning.pipeline.setup import require_context, tokenizer_hash
from cdpo_lightning.text.templates import Encoder


def alone(config: RunConfig) -> RunConfig:
    """The configuration without a model of its own: the first judged policy stands for it, and nothing is trained.

    Raises:
        ConfigError: a score model would have to be trained on it, and be another for every policy.
    """
    if not config.alone:
        return config
    for kind in ("reward", "cost"):
        if not getattr(config, kind).path:
            raise ConfigError(f"{kind}.path is empty: to judge policy=FOLDER without a model.path, name the score models to use")
    stages = [stage for stage in config.stages if stage != "sft"]
    return replace(config, stages=stages, model=_model(config, config.external_policies[0]))


def external_policies(setup: EvaluationSetup) -> list[Candidate]:
    """The judged policies, on the run's device; behind the reference, which may be SFT, unless a policy stands for it."""
    config = setup.bench.config
    names = ("reference", "sft") if "sft" in config.stages else ("reference",)
    result = [] if _model(config, config.external_policies[0]) == config.model else [Candidate(setup.reference, names)]
    return result + [
        _external_policy(setup, who, path) for who, path in zip(config.external_names, config.external_policies, strict=True)
    ]


def _model(config: RunConfig, path: str) -> ModelConfig:
    """The folder, or `owner/name@revision`, in the place of the run's model: same template, same lengths."""
    name, _, revision = (path, "", "") if Path(path).exists() else path.partition("@")
    return replace(config.model, path=name, gguf_file="", revision=revision or None)


def _external_policy(setup: EvaluationSetup, who: str, path: str) -> Candidate:
    """The policy with its own tokenizer; its KL to the reference is measured only where both read the same tokens, and are two."""
    config = setup.bench.config
    own = _model(config, path)
    require_context(replace(config, model=own))
    tokenizer = causal_lm.load_tokenizer(own)
    model = causal_lm.load(own).to(setup.bench.device).requires_grad_(False)
    comparable = own != config.model and tokenizer_hash(tokenizer) == tokenizer_hash(setup.bench.tokenizer)
    encoder = Encoder(tokenizer, own.template, own.max_prompt_tokens, own.max_response_tokens)
    return Candidate(model, (who,), None if comparable else encoder)
