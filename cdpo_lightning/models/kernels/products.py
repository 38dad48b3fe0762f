"""Matrix products of bf16 numbers where the processor has no matrix units for them.

There a product in float32 is up to twice as fast, and sums exactly as bf16 units do: the factors are bf16 numbers, the sum is a
float32 one. Only what is stored is rounded to bf16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FEW_ROWS = 64  # fewer are faster in bf16: there the weights' way to the processor costs, not the product


def better_in_float32(device: torch.device) -> bool:
    """Whether the device multiplies float32 numbers faster than bf16 ones."""
    return device.type == "cpu" and not torch.cpu._is_amx_tile_supported()


def asked_type(like: Tensor) -> torch.dtype:
    """The type that a product with `like` is asked in: that of autocast, where it is on."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which products are of the types that they are given."""
    return torch.autocast(device.type, enabled=False)


def linear(input_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear` [..., O], the factors multiplied in float32 if they are bf16 ones and not few."""
    few = input_BI.numel() < FEW_ROWS * weight_OI.shape[1]
    if few or asked_type(input_BI) != torch.bfloat16:
        return F.linear(input_BI, weight_OI, bias_O)
    product: Tensor = _Product.apply(input_BI.bfloat16(), weight_OI, bias_O)
    return product


class _Product(torch.autograd.Function):
    """x W' + b of bf16 numbers by way of float32, rounded once; nothing in float32 is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(input_BI, weight_OI)
        ctx.bias_type = None if bias_O is None else bias_O.dtype
        with without_autocast(input_BI.device):
            return F.linear(input_BI.float(), _factor(weight_OI), None if bias_O is None else _factor(bias_O)).bfloat16()

    @staticmethod
    def backward(ctx: Any, gradient_BO: Tensor) -> tuple[Tensor | None, ...]:
        input_BI, weight_OI = ctx.saved_tensors
        by_input = by_weight = by_bias = None
        with without_autocast(input_BI.device):
            gradient_BO = gradient_BO.float()
            if ctx.needs_input_grad[0]:
                by_input = (gradient_BO @ _factor(weight_OI)).bfloat16()
            if ctx.needs_input_grad[1]:
                by_weight = (gradient_BO.flatten(0, -2).t() @ input_BI.float().flatten(0, -2)).to(weight_OI.dtype)
            if ctx.needs_input_grad[2]:
                by_bias = gradient_BO.flatten(0, -2).sum(0).to(ctx.bias_type)
        return by_input, by_weight, by_bias


def _factor(weight: Tensor) -> Tensor:
    return weight.bfloat16().float()
