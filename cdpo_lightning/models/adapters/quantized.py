"""QLoRA: a frozen model's linear layers in 4-bit NormalFloat (bitsandbytes), with adapters beside them [2305.14314].

The reference is the model as quantised, adapters off: what policy and reference differ by is what the adapters have learned.
"""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from cdpo_lightning.errors import ModelError

BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a parameter: its 4 bits, and the scales of blocks of 64, quantised in blocks of 256


def is_quantized(model: nn.Module) -> bool:
    """Whether `quantized` made it."""
    return bool(getattr(model, "is_loaded_in_4bit", False))  # the name by which peft asks


def quantized(model: nn.Module, device: torch.device, compute: torch.dtype) -> nn.Module:
    """A frozen copy on `device` whose linear layers, all but the head, are NF4 with double quantisation; itself if it is one.

    A layer at a time goes to the device, so that the whole model never lies there in full precision.

    Args:
        compute: the type of the matrix products, for which the weights are read back.

    Raises:
        ModelError: bitsandbytes is not installed, or there is nothing to quantise.
    """
    if is_quantized(model):
        return model
    if find_spec("bitsandbytes") is None:
        raise ModelError("model.quantize=nf4: bitsandbytes is not installed; try: pip install 'cdpo-lightning[qlora]'")
    quiet_bitsandbytes()
    names = linear_layers(model)
    if not names:
        raise ModelError(f"model.quantize=nf4: {type(model).__name__} has no linear layers (torch.nn.Linear); leave it empty")
    full = {id(model.get_submodule(name).weight) for name in names}
    small = copy.deepcopy(model, dict.fromkeys(full))  # the weights to be quantised are not copied
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(small.get_submodule(parent), own, _packed(model.get_submodule(name), device, compute))
    small.is_loaded_in_4bit = True  # type: ignore[assignment]
    return small.to(device).requires_grad_(False).eval()


def quiet_bitsandbytes() -> None:
    """Called before it is imported, which peft does for itself: it warns of a kernel for CPUs that it could have downloaded."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def linear_layers(model: nn.Module) -> list[str]:
    """The names of the linear layers of the body."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head]


def _packed(linear: Any, device: torch.device, compute: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        packed = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=compute, quant_type="nf4")
    weight = linear.weight.detach().clone()
    packed.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", module=packed).to(device)  # type: ignore[misc]
    packed.support_avx512bf16_for_cpu = False  # a path that repacks the weights in place and multiplies in bf16
    if linear.bias is not None:
        packed.bias = nn.Parameter(linear.bias.detach().to(device), requires_grad=False)
    return packed


def is_packed(part: nn.Module) -> bool:
    """Whether it is a layer with its weights in 4 bits."""
    return getattr(getattr(part, "weight", None), "quant_state", None) is not None


def opened(packed: Any) -> nn.Linear:
    """An ordinary layer with the weights that a quantised one computes with, float32."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(packed.weight.data, packed.weight.quant_state).float()
    with torch.device("meta"):
        plain = nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if packed.bias is not None:
        plain.bias = nn.Parameter(packed.bias.detach().float(), requires_grad=False)
    return plain
