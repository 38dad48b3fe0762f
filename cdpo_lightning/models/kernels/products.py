"""Matrix products of bf16 numbers on processors without matrix units for bf16.

There a float32 product is up to twice as fast, and it sums exactly as bf16 units do: the factors are bf16 numbers, and the sum is a
float32 number. Only what is stored is rounded to bf16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cdpo_lightning import compat

MIN_ROWS = 64  # fewer rows are faster in bf16: reading the weights takes the time there, not the product


def faster_in_float32(device: torch.device) -> bool:
    """Return whether the device multiplies float32 numbers faster than bf16 numbers."""
    return device.type == "cpu" and not compat.processor_has_amx()


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type in which torch multiplies `tensor`: autocast's where that is on, else the tensor's own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def without_autocast(device: torch.device) -> torch.autocast:
    """Return a context in which products are computed in the type of their factors."""
    return torch.autocast(device.type, enabled=False)


def linear_via_float32(input_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return `torch.nn.functional.linear` [..., O]; bf16 factors of at least `MIN_ROWS` rows are multiplied in float32."""
    few = input_BI.numel() < MIN_ROWS * weight_OI.shape[1]
    if few or autocast_dtype(input_BI) != torch.bfloat16:
        return F.linear(input_BI, weight_OI, bias_O)
    product: Tensor = _Float32Product.apply(input_BI.bfloat16(), weight_OI, bias_O)
    return product


class _Float32Product(torch.autograd.Function):
    """x W' + b of bf16 numbers, computed in float32 and rounded once; no float32 tensor is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(input_BI, weight_OI)
        ctx.bias_type = None if bias_O is None else bias_O.dtype
        with without_autocast(input_BI.device):
            bias = None if bias_O is None else _rounded_to_bf16(bias_O)
            return F.linear(input_BI.float(), _rounded_to_bf16(weight_OI), bias).bfloat16()

    @staticmethod
    def backward(ctx: Any, gradient_BO: Tensor) -> tuple[Tensor | None, ...]:
        input_BI, weight_OI = ctx.saved_tensors
        by_input = by_weight = by_bias = None
        with without_autocast(input_BI.device):
            gradient_BO = gradient_BO.float()
            if ctx.needs_input_grad[0]:
                by_input = (gradient_BO @ _rounded_to_bf16(weight_OI)).bfloat16()
            if ctx.needs_input_grad[1]:
                by_weight = (gradient_BO.flatten(0, -2).t() @ input_BI.float().flatten(0, -2)).to(weight_OI.dtype)
            if ctx.needs_input_grad[2]:
                by_bias = gradient_BO.flatten(0, -2).sum(0).to(ctx.bias_type)
        return by_input, by_weight, by_bias


def _rounded_to_bf16(tensor: Tensor) -> Tensor:
    """Return the bf16 values of `tensor`, as float32."""
    return tensor.bfloat16().float()
