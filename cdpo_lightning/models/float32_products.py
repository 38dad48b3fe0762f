"""A model in bf16 whose layers multiply in float32, for processors without matrix units for bf16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cdpo_lightning.maths.products import asked_type, better_in_float32, linear, without_autocast
from cdpo_lightning.models.layers import layers_of

ATTENTION = "sdpa_float32"


class Float32Linear(nn.Linear):
    """`nn.Linear`, its product by way of float32 where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., out_features], in the input's type or autocast's."""
        return linear(input, self.weight, self.bias)


def multiply_in_float32(model: nn.Module, device: torch.device) -> None:
    """Has the layers of a model that runs in bf16 multiply in float32 if that is faster on `device`; weights stay as they are.

    The head is left alone: it is run to sample, on a few rows at a time; in training `token_logp` takes its place.
    """
    if not better_in_float32(device):
        return
    for layer in layers_of(model):
        for module in layer.modules():
            if type(module) is nn.Linear:
                module.__class__ = Float32Linear
    config: Any = model.config
    if config._attn_implementation == "sdpa":
        config._attn_implementation = ATTENTION


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa`, in float32 unless a single token is read, whose cache would have to be converted."""
    dtype = asked_type(query)
    if dtype != torch.bfloat16 or query.shape[2] == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    with without_autocast(query.device):
        wide = (t.to(dtype).float() for t in (query, key, value))
        output, _ = sdpa_attention_forward(module, *wide, attention_mask, **options)
    return output.to(dtype), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
