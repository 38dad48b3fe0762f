"""Policies from outside: any Hugging Face model, to be judged like those trained here."""

from __future__ import annotations

from dataclasses import replace

from cdpo_lightning.config import RunConfig
from cdpo_lightning.data.templates import Encoder
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.models import causal_lm
from cdpo_lightning.stages.bench import require_context, tokenizer_hash
from cdpo_lightning.stages.judging import Candidate
from cdpo_lightning.stages.prepare import Court


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
    return replace(config, stages=stages, model=replace(config.model, path=config.judged[0], gguf_file=""))


def visitors(court: Court) -> dict[str, Candidate]:
    """The judged policies by name, each on the run's device; behind the reference, unless a policy stands for it."""
    config = court.bench.config
    found = {} if config.model.path == config.judged[0] else {"reference": Candidate(court.reference)}
    return found | {who: _visitor(court, path) for who, path in zip(config.judges, config.judged, strict=True)}


def _visitor(court: Court, path: str) -> Candidate:
    """A policy with its own tokenizer; KL to the reference only where both read the same tokens, and are two."""
    config = court.bench.config
    own = replace(config.model, path=path, gguf_file="", revision=None)
    require_context(replace(config, model=own))
    tokenizer = causal_lm.load_tokenizer(own)
    model = causal_lm.load(own).to(court.bench.device).requires_grad_(False)
    comparable = config.model.path != path and tokenizer_hash(tokenizer) == tokenizer_hash(court.bench.tokenizer)
    encoder = Encoder(tokenizer, own.template, own.max_prompt_tokens, own.max_response_tokens)
    return Candidate(model, None if comparable else encoder)
