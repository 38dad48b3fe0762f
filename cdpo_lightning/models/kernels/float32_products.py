"""A model in bf16 whose layers multiply in float32, for processors without matrix units for bf16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.models.kernels import attention
from cdpo_lightning.models.kernels.products import better_in_float32, linear
from cdpo_lightning.models.lm.layers import layers_of
from cdpo_lightning.models.lm.packed_forward import packs


class Float32Linear(nn.Linear):
    """`nn.Linear`, its product by way of float32 where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., out_features], in the input's type or autocast's."""
        return linear(input, self.weight, self.bias)


def multiply_in_float32(model: nn.Module, device: torch.device) -> None:
    """Has the layers of a model that runs in bf16 multiply in float32 if that is faster on `device`; weights stay as they are.

    The head is left alone: it is run to sample, on a few rows at a time; in training `token_logp` takes its place. Attention stays
    as it is where the model does not hand the rows on as they are.
    """
    if not better_in_float32(device):
        return
    for layer in layers_of(model):
        for module in layer.modules():
            if type(module) is nn.Linear:
                module.__class__ = Float32Linear
    config: Any = model.config
    before = config._attn_implementation
    attention.use(model, attention.FLOAT32)
    if config._attn_implementation != before and not packs(model):
        config._attn_implementation = before
