"""Makes the layers of a bf16 model multiply in float32, for processors without matrix units for bf16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdpo_lightning import compat
from cdpo_lightning.models.kernels.attention import FLOAT32_ATTENTION, use_attention
from cdpo_lightning.models.kernels.products import faster_in_float32, linear_via_float32
from cdpo_lightning.models.lm.layers import layers_of
from cdpo_lightning.models.lm.packed_forward import probe_packing_support


class Float32Linear(nn.Linear):
    """`nn.Linear` that multiplies bf16 factors in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the product [..., out_features], in the type of the input or of autocast."""
        return linear_via_float32(input, self.weight, self.bias)


def multiply_in_float32(model: nn.Module, device: torch.device) -> None:
    """Make the layers of a bf16 model multiply in float32, if that is faster on `device`; the weights stay bf16.

    The head is not changed: in sampling it multiplies only a few rows at a time, and in training `token_logp` replaces it. The
    attention is not changed if the model does not pass the layout of joined rows on to it.
    """
    if not faster_in_float32(device):
        return
    for layer in layers_of(model):
        for module in layer.modules():
            if type(module) is nn.Linear:
                module.__class__ = Float32Linear
    before = compat.attention_of(model)
    use_attention(model, FLOAT32_ATTENTION)
    if compat.attention_of(model) != before and not probe_packing_support(model):
        compat.set_attention(model, str(before))
