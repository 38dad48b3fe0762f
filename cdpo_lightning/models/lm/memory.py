"""Estimate the device memory that training a model takes, from the sizes of the model alone: no weights are loaded.

Bytes per parameter: float32 weights 4, gradient 4, Adam's two moments 8. ZeRO's optimizer keeps a float32 copy of the weights, 4
more, sharded like the moments, and an intermediate result of its step takes 4 more. `bf16-mixed` changes the matrix products only;
under `bf16-true` weights and gradients take 2. In a model with adapters, only the adapters have gradient and moments; quantised
weights take half a byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from cdpo_lightning.config import ModelConfig, TrainerConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.adapters.quantized import BYTES_PER_PARAMETER, linear_layer_names
from cdpo_lightning.models.kernels.logprobs import LOGITS_PER_CHUNK
from cdpo_lightning.models.lm.causal_lm import freeze_lower_layers, loading_options, model_source

_FLOAT32_COPY, _MOMENTS, _STEP = 4, 8, 4  # bytes per trained parameter
_BUCKET = 500_000_000  # the most gradients that DeepSpeed exchanges at once


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model: its parameters, how many of them are trained, and what its activations depend on."""

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    embedding_parameters: int  # of embedding and head, counted once where they are tied
    quantized: int = 0  # parameters in 4 bits


def shape_of(config: ModelConfig, vocabulary: int | None = None) -> ModelShape | None:
    """Return the sizes of the configured model; None if neither its config.json nor `model.architecture` gives them.

    Args:
        vocabulary: size of the vocabulary of a model that is built here.
    """
    model_config = _model_config(config, vocabulary)
    if model_config is None:
        return None
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)
    freeze_lower_layers(model, config.trainable_layers)
    text = model_config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    embeddings = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    linear: list[nn.Parameter] = [model.get_submodule(name).weight for name in linear_layer_names(model)]  # type: ignore[misc]
    adapters = config.lora_rank * sum(sum(weight.shape) for weight in linear)
    return ModelShape(
        parameters=parameters + adapters,
        trainable=adapters or sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        embedding_parameters=sum(p.numel() for p in nn.ModuleList(embeddings).parameters()),
        quantized=sum(weight.numel() for weight in linear) if config.quantize else 0,
    )


def _model_config(config: ModelConfig, vocabulary: int | None) -> LlamaConfig | None:
    sizes = dict(config.architecture)
    if config.path:
        try:
            return AutoConfig.from_pretrained(model_source(config), **loading_options(config))
        except (OSError, ValueError, ModelError):
            vocabulary = sizes.pop("vocab_size", None)  # given where `architecture` holds the sizes of the model at `path`
    if vocabulary is None:
        return None
    return LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=not config.path, **sizes)


def activation_bytes(shape: ModelShape, tokens: int, precision: str, checkpointing: bool) -> int:
    """Return the bytes kept for the backward pass of one batch of `tokens` on this rank, including the logits of one chunk.

    With gradient checkpointing a layer keeps its input only, and one layer at a time is run again.
    """
    layer, hidden = _layer_bytes_per_token(shape, precision), (2 if precision == "bf16-true" else 4) * shape.hidden
    kept = shape.layers * hidden + layer if checkpointing else shape.layers * layer
    return tokens * (kept + 3 * hidden) + 3 * 4 * min(LOGITS_PER_CHUNK, tokens * shape.vocabulary)


def _layer_bytes_per_token(shape: ModelShape, precision: str) -> int:
    """Return the bytes per token that one layer saves.

    The factors were fitted to the saved tensors of a Llama of transformers 5, by hidden and intermediate size.
    """
    if precision == "bf16-mixed":  # norms and residuals stay float32
        return int(4 * (9.8 * shape.hidden + 2.75 * shape.intermediate))
    return int((2 if precision == "bf16-true" else 4) * (10.5 * shape.hidden + 4 * shape.intermediate))


def bytes_per_rank(shape: ModelShape, trainer: TrainerConfig, stage: int) -> dict[str, int]:
    """Return the bytes of `weights`, `gradients` and `optimizer` on one rank under ZeRO stage 0 (none) to 3."""
    width, ranks = (2 if trainer.precision == "bf16-true" else 4), trainer.processes
    trained = shape.trainable
    weights = width * (shape.parameters - shape.quantized) + int(BYTES_PER_PARAMETER * shape.quantized)
    if stage == 0:
        copies = 2 if ranks > 1 else 1  # DDP exchanges gradients in buckets, a second copy
        return {"weights": weights, "gradients": copies * width * trained, "optimizer": 2 * width * trained}
    bucket = min(_BUCKET, trained)
    return {
        "weights": weights // (ranks if stage == 3 else 1),
        "gradients": width * (trained // (ranks if stage > 1 else 1) + (bucket if stage > 1 else 0)),
        "optimizer": (_FLOAT32_COPY + _MOMENTS + _STEP) * trained // ranks,
    }
