"""What every stage works with: configuration, store, history, data, tokenizer; and the model they all start from."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from cdpo_lightning.config import FitConfig, RunConfig
from cdpo_lightning.data.corpus import Corpus, Split
from cdpo_lightning.data.world import grammar
from cdpo_lightning.errors import ConfigError, DataError
from cdpo_lightning.evaluation.evaluator import logp_of
from cdpo_lightning.models.adapters import lora as adapters
from cdpo_lightning.models.adapters.quantized import quantized
from cdpo_lightning.models.heads.published import require_folder
from cdpo_lightning.models.kernels.float32_products import multiply_in_float32
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.models.lm.layers import compiled
from cdpo_lightning.models.lm.packed_forward import compute_type
from cdpo_lightning.models.lm.placement import park
from cdpo_lightning.store.artifacts import Artifact, Store, digest
from cdpo_lightning.store.history import History
from cdpo_lightning.text.packing import Row
from cdpo_lightning.text.templates import Encoder
from cdpo_lightning.training.fit import Stage, fit


@dataclass(frozen=True)
class RunContext:
    """What every stage works with."""

    config: RunConfig
    folder: Path
    store: Store
    history: History
    corpus: Corpus
    tokenizer: Any
    progress: bool

    @property
    def device(self) -> torch.device:
        """Where passes without gradient run."""
        on_gpu = self.config.trainer.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if on_gpu else "cpu")

    @property
    def full_precision(self) -> torch.device:
        """Where the base model lies as it was loaded: on the device, or in the host's memory if only its 4 bits go there."""
        return torch.device("cpu") if self.config.model.quantize else self.device

    @cached_property
    def encoder(self) -> Encoder:
        """Text to the policy's token ids."""
        model = self.config.model
        return Encoder(self.tokenizer, model.template, model.max_prompt_tokens, model.max_response_tokens)

    def offload(self, model: nn.Module) -> nn.Module:
        """A model that is trained no more, in evaluation mode: on the device, or parked until it is used."""
        if self.config.trainer.park_frozen:
            park(model, self.device)
            return model.eval()
        return model.to(self.device).eval()

    def fit(self, module: L.LightningModule, data: L.LightningDataModule, stage: Stage, **options: Any) -> L.Trainer:
        """Trains the stage under the run's trainer and history."""
        with compiled(module, self.config.model.compile, self.device):
            return fit(module, data, stage, self.config.trainer, self.history, progress=self.progress, **options)

    def logp(self, model: nn.Module, rows: list[Row]) -> torch.Tensor:
        """log pi of the rows' responses, nats, float64, with the numerics of training."""
        trainer = self.config.trainer
        with compiled(model, self.config.model.compile, self.device):
            return logp_of(model, rows, trainer.inference_batch, trainer.precision)


@dataclass(frozen=True)
class Base:
    """The untrained model, and the hash of its weights."""

    model: nn.Module
    identity: str


def made_of(bench: RunContext, base: Base, fit_config: FitConfig, data: Split[Any]) -> dict[str, object]:
    """All that a trained stage's weights and held-out figures are a function of; names and labels left out."""
    config = bench.config
    unused = {
        "name",
        "path",
        "gguf_file",
        "revision",
        "lora_merge",
        *(() if config.model.lora_rank else ("lora_rank", "lora_alpha")),
        *(() if config.model.quantize else ("quantize",)),
        *(() if config.model.compile else ("compile",)),
    }
    model = {k: v for k, v in asdict(config.model).items() if k not in unused}
    trainer = {"precision": config.trainer.precision, "accumulate": config.trainer.accumulate_grad_batches}
    return {
        "base": base.identity,
        "tokenizer": tokenizer_hash(bench.tokenizer),
        "model": model,
        "fit": asdict(fit_config),
        "rows": digest([asdict(e) for e in data.train], [asdict(e) for e in data.held_out]),
        "seed": config.seed,
        **trainer,
    }


def optimizer_steps(bench: RunContext, batches: int, epochs: int) -> int:
    """Steps of the optimizer in a stage: every epoch ends with one, however many batches are accumulated."""
    return epochs * -(-batches // bench.config.trainer.accumulate_grad_batches)


def tokenizer_hash(tokenizer: Any) -> str:
    """Names the tokenizer: its vocabulary, rules and template."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    return digest(backend, tokenizer.chat_template, tokenizer.eos_token_id)


def load_tokenizer(config: RunConfig) -> Any:
    """The world's own tokenizer for a model built here, else the one beside the model."""
    if config.model.path:
        return causal_lm.load_tokenizer(config.model)
    return causal_lm.word_tokenizer(grammar.vocabulary())


def load_base(bench: RunContext) -> Base:
    """The untrained model: built from the seed, or loaded."""
    model = bench.config.model
    loaded: Any
    if model.path:
        loaded = causal_lm.load(model)
    else:
        t = bench.tokenizer
        loaded = causal_lm.build(model.architecture, len(t), t.pad_token_id, t.eos_token_id, bench.config.seed).eval()
    if compute_type(bench.config.trainer.precision) == torch.bfloat16:
        multiply_in_float32(loaded, bench.device)
    if model.gradient_checkpointing:
        loaded.activation_checkpointing_enable()
    return Base(loaded.to(bench.full_precision), causal_lm.parameter_hash(loaded))


def trainable(bench: RunContext, model: nn.Module) -> nn.Module:
    """A copy of the model to be trained: all of it, its last layers, or adapters beside its weights."""
    config = bench.config
    if config.model.lora_rank:
        # ZeRO-3 would shard the weights that the reference reads.
        return adapters.with_adapters(frozen(bench, model), config.model, config.seed, share=config.trainer.zero != 3)
    return causal_lm.freeze_lower(copy.deepcopy(model).requires_grad_(True), config.model.trainable_layers)


def frozen(bench: RunContext, model: nn.Module) -> nn.Module:
    """The model as adapters are trained beside it: in 4 bits, if the configuration says so."""
    config = bench.config
    return quantized(model, bench.device, compute_type(config.trainer.precision)) if config.model.quantize else model


def stage_of(bench: RunContext, name: str, config: FitConfig) -> Stage:
    """A supervised stage of the run."""
    return Stage(name, config.epochs, bench.folder / "checkpoints" / name, bench.config.seed)


def restored(model: Any, artifact: Artifact, device: torch.device) -> tuple[Any, Artifact]:
    """The model with the artifact's weights: the same path whether they were just trained or read."""
    model.load_state_dict(artifact.tensors, strict=False)
    return model.to(device).eval().requires_grad_(True), artifact


def require_context(config: RunConfig) -> None:
    """Raises:
    ConfigError: prompt and responses of the configured lengths do not fit the model's context.
    """
    model = config.model
    limit = causal_lm.context_length(model)
    wanted = model.max_prompt_tokens + model.max_response_tokens
    if limit is not None and wanted > limit:
        raise ConfigError(
            f"model.max_prompt_tokens + model.max_response_tokens = {wanted}: expected at most the model's context of {limit}"
        )


def require_examples(config: RunConfig, corpus: Corpus) -> None:
    """Raises:
    DataError: a stage of the run has nothing to learn from, found before the first of them is trained.
    ModelError: `reward.path` or `cost.path` is no folder.
    """
    dropped = corpus.metrics.get("data/dropped", 0)
    if not corpus.pairs:
        message = f"dataset.pairs: no pair is left to train on, {dropped} were dropped and the others held out"
        raise DataError(f"{message}; see dataset.on_conflict and dataset.held_out")
    if "sft" in config.stages and not corpus.demonstrations.train:
        raise DataError("stages holds sft, but dataset.demonstrations is empty; name a file or leave sft out of stages")
    trained = corpus.world is None or corpus.world.config.scores == "learned"
    for kind, labels in (("reward", "better_response_id or dataset.reward_pairs"), ("cost", "safety labels")):
        require_folder(getattr(config, kind).path)
        if trained and not getattr(config, kind).path and not getattr(corpus, kind).train:
            raise DataError(f"the {kind} model has nothing to learn from: add {labels}, or set {kind}.path")
