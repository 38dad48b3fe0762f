"""QLoRA: the linear layers of a frozen model in 4-bit NormalFloat (bitsandbytes), to which adapters are added [2305.14314].

The reference is the quantised model without adapters: policy and reference differ in the adapters only.
"""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from cdpo_lightning.errors import ModelError

# 4 bits, a scale of 8 bits per block of 64 parameters, and a scale of 32 bits per block of 256 of those scales.
BYTES_PER_PARAMETER = 0.5 + 1 / 64 + 4 / (64 * 256)


def is_quantized(model: nn.Module) -> bool:
    """Return whether the model was made by `quantize`."""
    return bool(getattr(model, "is_loaded_in_4bit", False))  # the name that peft looks for


def quantize(model: nn.Module, device: torch.device, compute: torch.dtype) -> nn.Module:
    """Return a frozen copy on `device` whose linear layers, except the head, are NF4 with double quantisation.

    A model that is quantised already is returned as it is. Layers are moved to the device one at a time, so that the device never
    has to hold the whole model in full precision.

    Args:
        compute: the type of the matrix products, to which the weights are dequantised.

    Raises:
        ModelError: bitsandbytes is not installed, or the model has no linear layers.
    """
    if is_quantized(model):
        return model
    if find_spec("bitsandbytes") is None:
        raise ModelError("model.quantize=nf4: bitsandbytes is not installed; try: pip install 'cdpo-lightning[qlora]'")
    silence_bitsandbytes()
    names = linear_layer_names(model)
    if not names:
        raise ModelError(f"model.quantize=nf4: {type(model).__name__} has no linear layers (torch.nn.Linear); leave it empty")
    not_copied = {id(model.get_submodule(name).weight) for name in names}  # replaced by quantised ones
    small = copy.deepcopy(model, dict.fromkeys(not_copied))
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(small.get_submodule(parent), own, _quantized_layer(model.get_submodule(name), device, compute))
    small.is_loaded_in_4bit = True  # type: ignore[assignment]
    return small.to(device).requires_grad_(False).eval()


def silence_bitsandbytes() -> None:
    """Silence the warning about a kernel for CPUs that bitsandbytes could download; call it before peft imports bitsandbytes."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def linear_layer_names(model: nn.Module) -> list[str]:
    """Return the names of the model's linear layers, except the head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head]


def _quantized_layer(linear: Any, device: torch.device, compute: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        layer = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=compute, quant_type="nf4")
    weight = linear.weight.detach().clone()
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer).to(device)  # type: ignore[misc]
    layer.support_avx512bf16_for_cpu = False  # it would repack the weights in place and multiply in bf16
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().to(device), requires_grad=False)
    return layer


def is_quantized_layer(part: nn.Module) -> bool:
    """Return whether the module is a layer with weights in 4 bits."""
    return getattr(getattr(part, "weight", None), "quant_state", None) is not None


def dequantize_layer(layer: Any) -> nn.Linear:
    """Return an ordinary float32 layer with the weights that a quantised one computes with."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
    return plain
