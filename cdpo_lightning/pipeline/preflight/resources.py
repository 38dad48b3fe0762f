"""Prints estimates for a run: the memory of each rank, the disk space, the steps of each stage, and what the store already has."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from cdpo_lightning.config import ResolvedMethod, RunConfig
from cdpo_lightning.console import Screen
from cdpo_lightning.data.corpus import Corpus
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.models.lm import memory
from cdpo_lightning.models.lm.packed_forward import compute_type
from cdpo_lightning.pipeline.base_model import load_base, make_trainables, stage_inputs
from cdpo_lightning.pipeline.inference import make_inference
from cdpo_lightning.pipeline.prepare import open_store
from cdpo_lightning.pipeline.scorers import missing_scorer, needs_stored_scorer, scorer_kind

_GB = 1e9


def _tokens(config: RunConfig) -> int:
    """Return the tokens of one batch of the policy on one rank, with every text at its maximum length."""
    model, policy, trainer = config.model, config.policy, config.trainer
    rows = math.ceil(policy.batch_size / policy.pairs_per_row / trainer.processes)
    return rows * (model.max_prompt_tokens + 2 * policy.pairs_per_row * model.max_response_tokens)


def memory_table(config: RunConfig, shape: memory.ModelShape, screen: Screen) -> None:
    """Print the memory of a rank under every stage of ZeRO, and mark the stage that `trainer` selects."""
    trainer = config.trainer
    tokens = _tokens(config)
    active = memory.activation_bytes(shape, tokens, trainer.precision, config.model.gradient_checkpointing)
    sibling = 0 if trainer.park_frozen else sum(_frozen(config)) * shape.parameters
    screen.say(
        f"memory     {shape.parameters / 1e9:.2f} billion parameters, {shape.trainable / shape.parameters:.0%} trained; "
        f"GB on each of {trainer.processes} ranks, estimated, {tokens:,} tokens a batch at full length"
    )
    screen.say(
        f"           {'':<8}{'weights':>9}{'gradients':>11}{'optimizer':>11}{'activations':>13}{'scorers, ref.':>15}{'sum':>8}"
    )
    for stage, name in enumerate(("ddp" if trainer.processes > 1 else "one", "zero1", "zero2", "zero3")):
        parts = [*memory.bytes_per_rank(shape, trainer, stage).values(), active, sibling]
        weights, gradients, optimizer, *_ = (part / _GB for part in parts)
        chosen = "  <- trainer" if stage == trainer.zero else ""
        screen.say(
            f"           {name:<8}{weights:>9.2f}{gradients:>11.2f}{optimizer:>11.2f}{active / _GB:>13.2f}{sibling / _GB:>15.2f}"
            f"{sum(parts) / _GB:>8.1f}{chosen}"
        )
    if trainer.zero == 3:
        whole, a_layer = trainer.gather == "whole", (shape.parameters - shape.embedding_parameters) / shape.layers
        more = 4 * (shape.parameters if whole else shape.embedding_parameters + a_layer) / _GB
        how = "the parameters are gathered once for all of it" if whole else "embedding, head and a layer at a time"
        screen.say(f"           and {more:.2f} more while a dual round samples: {how}")
    if trainer.park_frozen:
        held, largest = (each(_frozen(config)) * shape.parameters / _GB for each in (sum, max))
        screen.say(
            f"           reference and score models wait in the host's memory ({held:.2f}); one at a time ({largest:.2f}) works"
        )


def _frozen(config: RunConfig) -> list[int]:
    """Return the bytes per parameter of reference, reward model and cost model.

    Each is assumed to have the size of the policy and not to be sharded.
    """
    published = compute_type(config.trainer.precision).itemsize
    shared = config.model.lora_rank and config.trainer.zero != 3  # the reference is the policy without adapters
    return [0 if shared else 4, *(published if scorer.path else 4 for scorer in (config.reward, config.cost))]


def disk(config: RunConfig, shape: memory.ModelShape, folder: Path, screen: Screen) -> None:
    """Print the disk space that the run needs and the space that is free.

    Raises:
        ConfigError: `run_dir` is on a disk without enough space, and the mode is `run`.
    """
    one = 12 * shape.trainable  # trained weights and the optimizer's moments
    policies = len(config.trained)
    best = 4 * (shape.trainable if config.model.lora_rank else shape.parameters)  # best_feasible
    kept = one * (1 + config.trainer.keep_checkpoints) + best  # one more while it is written
    need = policies * (kept + 4 * shape.parameters)
    need += 4 * shape.parameters if config.generation.engine == "vllm" else 0  # the weights that it reads
    location = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(location).free
    message = f"disk       {need / _GB:.1f} GB for checkpoints and exports of {policies} policies, {free / _GB:.1f} GB are free"
    if need > free and config.mode == "run":
        raise ConfigError(f"run_dir={config.run_dir}: {message.split('  ')[-1].strip()}; choose another disk")
    screen.say(message + ("; TOO LITTLE for a run here" if need > free else ""))


def stages(config: RunConfig, corpus: Corpus | None, tokenizer: Any, folder: Path, screen: Screen) -> None:
    """Print the stages with their steps and whether the store has their result, and the methods."""
    screen.say(f"run_dir    {folder}")
    held = _held(config, corpus, tokenizer, folder)
    for stage in config.stages:
        screen.say(f"stage      {stage:<10}{_steps(config, corpus, stage)}{held.get(stage, '')}")
    for each in map(config.resolve_method, config.trained if "policy" in config.stages else []):
        screen.say(f"method     {each.who} ({each.spec.trainer}, constraint {each.constraint.kind})")


def _steps(config: RunConfig, corpus: Corpus | None, stage: str) -> str:
    if stage in ("sft", "reward", "cost"):
        return _supervised_steps(config, corpus, stage)
    if stage == "policy":
        return _policy_steps(config, corpus)
    if stage != "evaluate":
        return ""
    who = {"reference", *config.trained}
    count = config.evaluation.prompts or (len(corpus.prompts) if corpus else "all")
    return f"{len(who)} policies on {count} prompts x {config.evaluation.samples_per_prompt} samples"


def _supervised_steps(config: RunConfig, corpus: Corpus | None, stage: str) -> str:
    fit = getattr(config, stage)
    if stage != "sft" and fit.path:
        return f"published: {fit.path}"
    if corpus is None:
        return f"{fit.epochs} epochs, batches of {fit.batch_size}"
    if stage != "sft" and scorer_kind(config, corpus, stage) == "oracle":
        return "the world's true scores"
    rows = len((corpus.demonstrations if stage == "sft" else getattr(corpus, stage)).train)
    return f"{fit.epochs} epochs of {rows:,} examples, at most {fit.epochs * math.ceil(rows / fit.batch_size):,} steps"


def _policy_steps(config: RunConfig, corpus: Corpus | None) -> str:
    methods = [config.resolve_method(who) for who in config.trained]
    own = methods[-1]
    policy, c = own.policy, own.constraint
    message = ", ".join(f"{one.who} {_length(one)}" for one in methods if one.spec.trainer != "none")
    if corpus is None or own.spec.trainer != "preference":
        return message
    prompts = len({pair.prompt for pair in corpus.pairs})
    sampled = min(c.prompts or prompts, prompts)
    pairs = len(corpus.pairs) + policy.refresh * sampled * policy.refresh_window  # once the window is full
    steps = policy.epochs * math.ceil(pairs / policy.batch_size)
    tokens = steps * config.trainer.processes * _tokens(config)
    return (
        f"{message}; up to {pairs:,} pairs an epoch, {steps:,} steps and {tokens / 1e6:,.1f} million tokens for {own.who}; "
        f"{sampled:,} x {c.samples_per_prompt} samples a round"
    )


def _length(method: ResolvedMethod) -> str:
    """Return the length of a method's training, in epochs or rounds, as text."""
    if method.spec.trainer == "ppo":
        return f"{method.ppo.rounds} rounds"
    if method.spec.trainer == "primal_dual":
        return f"{method.primal_dual.reward_epochs} and {method.primal_dual.epochs} epochs"
    return f"{method.policy.epochs} epochs, {method.policy.epochs // method.constraint.every_k_epochs} dual rounds"


def _held(config: RunConfig, corpus: Corpus | None, tokenizer: Any, folder: Path) -> dict[str, str]:
    """Return, by supervised stage, a note on whether the store has its result; empty for a model that would have to be loaded.

    Raises:
        ConfigError: `stages` leaves out a score model that the run needs and the store does not have.
    """
    if corpus is None or tokenizer is None or config.model.path:
        return {}
    store, _ = open_store(config, folder)
    base = load_base(make_trainables(config, make_inference(config).device), tokenizer)
    held = {}
    for stage, data in (("sft", corpus.demonstrations), ("reward", corpus.reward), ("cost", corpus.cost)):
        if stage == "sft" or scorer_kind(config, corpus, stage) == "trained":
            there = store.holds(stage, stage_inputs(config, tokenizer, base, getattr(config, stage), data))
            if not there and stage != "sft" and needs_stored_scorer(config, stage):  # without SFT the base model is the reference
                raise missing_scorer(stage)
            held[stage] = "; the store has it" if there else "; not in the store"
    return held
