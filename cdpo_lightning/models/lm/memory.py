"""What training a model takes of a device's memory, from its shape alone: nothing is loaded, no weight is needed.

Bytes a parameter: float32 weights 4, gradient 4, Adam's two moments 8; ZeRO's optimizer keeps a float32 copy of the weights, 4
more, and shards it with the moments; an intermediate result of its step takes 4 more. `bf16-mixed` changes the matrix products
only; under `bf16-true` weights and gradients take 2. Of a model with adapters these alone
have gradient and moments; quantised weights take half a byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from cdpo_lightning.config import ModelConfig, TrainerConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.adapters.quantized import BYTES, linear_layers
from cdpo_lightning.models.kernels.logprobs import CHUNK_ELEMENTS
from cdpo_lightning.models.lm.causal_lm import freeze_lower, options_of, source_folder

_MASTER, _MOMENTS, _STEP = 4, 8, 4  # bytes a trained parameter
_BUCKET = 500_000_000  # gradients that DeepSpeed exchanges at once, at most


@dataclass(frozen=True)
class Shape:
    """A model's sizes: parameters in all, those that are trained, and what its activations depend on."""

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    ends: int  # parameters of embedding and head, once where they are the same
    quantized: int = 0  # parameters in 4 bits


def shape_of(config: ModelConfig, vocabulary: int | None = None) -> Shape | None:
    """The sizes of the configured model; None where neither its description nor `model.architecture` tells them.

    Args:
        vocabulary: tokens of a model that is built here.
    """
    described = _description(config, vocabulary)
    if described is None:
        return None
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(described, trust_remote_code=config.trust_remote_code)
    freeze_lower(model, config.trainable_layers)
    text = described.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    ends = (end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None)
    linear: list[nn.Parameter] = [model.get_submodule(name).weight for name in linear_layers(model)]  # type: ignore[misc]
    adapters = config.lora_rank * sum(sum(weight.shape) for weight in linear)
    return Shape(
        parameters=parameters + adapters,
        trainable=adapters or sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        ends=sum(p.numel() for p in nn.ModuleList(ends).parameters()),
        quantized=sum(weight.numel() for weight in linear) if config.quantize else 0,
    )


def _description(config: ModelConfig, vocabulary: int | None) -> LlamaConfig | None:
    sizes = dict(config.architecture)
    if config.path:
        try:
            return AutoConfig.from_pretrained(source_folder(config), **options_of(config))
        except (OSError, ValueError, ModelError):
            vocabulary = sizes.pop("vocab_size", None)  # stands there where the sizes are those of `path`
    if vocabulary is None:
        return None
    return LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=not config.path, **sizes)


def activations(shape: Shape, tokens: int, precision: str, checkpointing: bool) -> int:
    """Bytes kept for the backward pass of one batch of `tokens` on this rank, the logits of one chunk included.

    With checkpointing a layer keeps its input only, and one layer at a time is run again.
    """
    layer, hidden = _layer(shape, precision), (2 if precision == "bf16-true" else 4) * shape.hidden
    kept = shape.layers * hidden + layer if checkpointing else shape.layers * layer
    return tokens * (kept + 3 * hidden) + 3 * 4 * min(CHUNK_ELEMENTS, tokens * shape.vocabulary)


def _layer(shape: Shape, precision: str) -> int:
    """Bytes a token that one layer saves: counted in a Llama of transformers 5 (saved tensors, by hidden and intermediate size)."""
    if precision == "bf16-mixed":  # norms and residuals stay float32
        return int(4 * (9.8 * shape.hidden + 2.75 * shape.intermediate))
    return int((2 if precision == "bf16-true" else 4) * (10.5 * shape.hidden + 4 * shape.intermediate))


def per_rank(shape: Shape, trainer: TrainerConfig, stage: int) -> dict[str, int]:
    """Bytes on one rank of `weights`, `gradients` and `optimizer` under ZeRO stage 0 (none) to 3."""
    width, ranks = (2 if trainer.precision == "bf16-true" else 4), trainer.processes
    trained = shape.trainable
    weights = width * (shape.parameters - shape.quantized) + int(BYTES * shape.quantized)
    if stage == 0:
        both = 2 if ranks > 1 else 1  # DDP exchanges them in buckets of their own
        return {"weights": weights, "gradients": both * width * trained, "optimizer": 2 * width * trained}
    bucket = min(_BUCKET, trained)
    return {
        "weights": weights // (ranks if stage == 3 else 1),
        "gradients": width * (trained // (ranks if stage > 1 else 1) + (bucket if stage > 1 else 0)),
        "optimizer": (_MASTER + _MOMENTS + _STEP) * trained // ranks,
    }
