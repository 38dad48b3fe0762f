"""The base model of a run: loads or builds it, makes trainable copies, restores trained weights from the store."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from cdpo_lightning.config import FitConfig, ModelConfig, RunConfig
from cdpo_lightning.data.corpus import Corpus, Split
from cdpo_lightning.data.world import grammar
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.models.adapters import lora
from cdpo_lightning.models.adapters.quantized import quantize
from cdpo_lightning.models.kernels.float32_products import multiply_in_float32
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.models.lm.packed_forward import compute_type
from cdpo_lightning.pipeline.inference import Inference
from cdpo_lightning.store.artifacts import Artifact, Store, digest
from cdpo_lightning.text.chat import FIXED_DATE, RENDERING
from cdpo_lightning.text.templates import Encoder
from cdpo_lightning.training.fit import FitSettings


@dataclass(frozen=True)
class IdentifiedModel:
    """A language model and the hash of its weights, or of what they were computed from."""

    model: nn.Module
    identity: str


@dataclass(frozen=True)
class Trainables:
    """The settings of trainable copies of a model: all layers, the last ones, or adapters on a model that may be in 4 bits."""

    model: ModelConfig
    precision: str  # Lightning's name
    share_frozen: bool  # adapters share the weights of the model that they are added to
    device: torch.device
    seed: int

    @property
    def full_precision_device(self) -> torch.device:
        """The device of the full-precision base model: the host's memory if only its 4-bit copy is put on the compute device."""
        return torch.device("cpu") if self.model.quantize else self.device

    def copy_of(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model to be trained."""
        if self.model.lora_rank:
            return lora.with_adapters(self.frozen(model), self.model, self.seed, share=self.share_frozen)
        return causal_lm.freeze_lower_layers(copy.deepcopy(model).requires_grad_(True), self.model.trainable_layers)

    def frozen(self, model: nn.Module) -> nn.Module:
        """Return the frozen model under the adapters: in 4 bits if `model.quantize` is set, else the model itself."""
        return quantize(model, self.device, compute_type(self.precision)) if self.model.quantize else model


def make_trainables(config: RunConfig, device: torch.device) -> Trainables:
    """Return the run's settings of trainable copies. Under ZeRO-3 they share no weights, which DeepSpeed would shard."""
    return Trainables(config.model, config.trainer.precision, config.trainer.zero != 3, device, config.seed)


@dataclass(frozen=True)
class StageInputs:
    """The inputs of the supervised stages: SFT and the score models."""

    config: RunConfig
    corpus: Corpus
    encoder: Encoder
    base: IdentifiedModel
    trainables: Trainables
    inference: Inference
    store: Store
    settings: FitSettings

    def made_of(self, fit_config: FitConfig, data: Split[Any]) -> Mapping[str, object]:
        """Return everything that a stage's weights and held-out metrics depend on; see `stage_inputs`."""
        return stage_inputs(self.config, self.encoder.tokenizer, self.base, fit_config, data)


def load_tokenizer(config: ModelConfig) -> Any:
    """Return the tokenizer of `model.path`, or the closed-form world's own if the model is built here."""
    return causal_lm.load_tokenizer(config) if config.path else causal_lm.word_tokenizer(grammar.vocabulary())


def load_base(trainables: Trainables, tokenizer: Any) -> IdentifiedModel:
    """Return the untrained model, built from the seed or loaded, and the hash of its weights."""
    config = trainables.model
    model: Any
    if config.path:
        model = causal_lm.load(config)
    else:
        ends = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        model = causal_lm.build(config.architecture, len(tokenizer), *ends, trainables.seed).eval()
    if compute_type(trainables.precision) == torch.bfloat16:
        multiply_in_float32(model, trainables.device)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return IdentifiedModel(model.to(trainables.full_precision_device), causal_lm.parameter_hash(model))


def make_encoder(model: ModelConfig, tokenizer: Any) -> Encoder:
    """Return the encoder of text to token ids of a policy, its template checked.

    Raises:
        ConfigError: `model.max_prompt_tokens` leaves no room for a text.
        ModelError: the chat template or `model.stop` cannot be used with this tokenizer.
    """
    encoder = Encoder(
        tokenizer=tokenizer,
        template=model.template,
        max_prompt=model.max_prompt_tokens,
        max_response=model.max_response_tokens,
        options=model.template_options,
        stop=causal_lm.named_stops(model, tokenizer),
        generation_stops=causal_lm.generation_stops(model),
    )
    encoder.require_usable()
    return encoder


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of the tokenizer's vocabulary, rules, chat template (with the date that it prints) and end token."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    date = (FIXED_DATE,) if "strftime_now" in str(tokenizer.chat_template) else ()
    return digest(backend, tokenizer.chat_template, tokenizer.eos_token_id, *date)


def stage_inputs(
    config: RunConfig, tokenizer: Any, base: IdentifiedModel, fit_config: FitConfig, data: Split[Any]
) -> Mapping[str, object]:
    """Return everything that a supervised stage's weights and held-out metrics depend on, as the key for the store.

    Settings that do not change the result, such as names and paths, are left out.
    """
    unused = {
        "name",
        "path",
        "gguf_file",
        "revision",
        "lora_merge",
        *(() if config.model.lora_rank else ("lora_rank", "lora_alpha")),
        *(() if config.model.quantize else ("quantize",)),
        *(() if config.model.compile else ("compile",)),
        *(() if config.model.template_options else ("template_options",)),
        *(() if config.model.stop else ("stop",)),
    }
    rendering = {"rendering": RENDERING} if config.model.template == "chat" else {}
    return rendering | {
        "base": base.identity,
        "tokenizer": tokenizer_hash(tokenizer),
        "model": {key: value for key, value in asdict(config.model).items() if key not in unused},
        "fit": asdict(fit_config),
        "rows": digest([asdict(e) for e in data.train], [asdict(e) for e in data.held_out]),
        "seed": config.seed,
        "precision": config.trainer.precision,
        "accumulate": config.trainer.accumulate_grad_batches,
    }


def restored(model: Any, artifact: Artifact, device: torch.device) -> nn.Module:
    """Return the model with the artifact's weights, whether these were just trained or read from the store."""
    model.load_state_dict(artifact.tensors, strict=False)
    return model.to(device).eval().requires_grad_(True)


def require_context(config: ModelConfig) -> None:
    """Raise an error unless prompt and response fit into the model's context.

    Raises:
        ConfigError: they do not fit.
    """
    limit = causal_lm.context_length(config)
    longest = config.max_prompt_tokens + config.max_response_tokens
    if limit is not None and longest > limit:
        raise ConfigError(
            f"model.max_prompt_tokens + model.max_response_tokens = {longest}: expected at most the model's context of {limit}"
        )
