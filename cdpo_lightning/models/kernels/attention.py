"""The attention of packed rows, computed in one of three ways.

* dense masks, by the implementation that the model was loaded with: on any device;
* `BLOCK_ATTENTION`: all rows joined into one without padding, by flex_attention with a block-sparse mask: fast on a GPU;
* `FLOAT32_ATTENTION`: all rows joined into one without padding, attention in float32: for processors that are slow in bf16.

For any other input (sampling, score models) the latter two behave as transformers' `sdpa`.
Shape legend: B rows, T positions, N tokens of all rows without padding, H heads, D size of a head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cdpo_lightning import compat
from cdpo_lightning.models.kernels.products import autocast_dtype, without_autocast
from cdpo_lightning.text.packing import PackedRows, attention_mask, join_rows, mask_of_segments

BLOCK_ATTENTION, FLOAT32_ATTENTION = "sdpa_or_blocks", "sdpa_float32"  # the names under which transformers knows them
_CPU_FLASH_ATTENTION = compat.cpu_flash_attention()
AttentionOutput = tuple[Tensor, Tensor | None]


def use_attention(model: nn.Module, name: str) -> None:
    """Switch a model from `sdpa` to `BLOCK_ATTENTION` or `FLOAT32_ATTENTION`.

    A model keeps its attention if it uses another than `sdpa`, does not support packed rows, or takes no registered attention
    (Falcon).
    """
    supported = getattr(model, "packing_supported", True) and compat.can_set_attention(model)
    if supported and compat.attention_of(model) == "sdpa":
        compat.set_attention(model, name)


def attention_inputs(model: nn.Module, rows: PackedRows) -> tuple[PackedRows, Tensor | BlockMask]:
    """Return the batch and the mask in the form that the model's attention takes: rows as they are, or joined into one."""
    name = compat.attention_of(model)
    if name == BLOCK_ATTENTION:
        one = join_rows(rows)
        return one, block_mask(one)
    if name == FLOAT32_ATTENTION:
        return join_rows(rows), _row_layout(rows)
    return rows, attention_mask(rows)


def block_mask(rows: PackedRows) -> BlockMask:
    """Return the mask of `packing.attention_mask` as a block-sparse one: blocks that are hidden completely are left out."""
    segment_BT, prompt_BT = rows.segment_BT, rows.prompt_BT

    def may_attend(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_segment, key_segment = segment_BT[b, query], segment_BT[b, key]
        return (query >= key) & ((key_segment == query_segment) | (key_segment == prompt_BT[b, query]))

    batch, length = segment_BT.shape
    # Not compiled, it makes all T x T entries first.
    make = torch.compile(create_block_mask) if segment_BT.is_cuda else create_block_mask
    return make(may_attend, batch, None, length, length, device=segment_BT.device)


def _row_layout(rows: PackedRows) -> Tensor:
    """Return the indices that convert the joined row to padded rows and back, integers [4, B, 1, T].

    In order: the index of each position in the joined row (N: padding); the flat positions in the order of the joined row, padding
    last; the numbers of segment and prompt. The shape is that of a mask, which transformers passes on unchanged.
    """
    real = rows.segment_BT >= 0
    index_BT = torch.where(real, real.flatten().cumsum(0).view_as(real) - 1, rows.tokens)
    order_BT = (~real).flatten().argsort(stable=True).view_as(real)
    return torch.stack([index_BT, order_BT, rows.segment_BT, rows.prompt_BT])[:, :, None]


class _PadRows(torch.autograd.Function):
    """Converts the joined row [N, H, D] to padded rows [B, T, H, D]. Padding is an arbitrary token; only padding attends to it."""

    @staticmethod
    def forward(ctx: Any, x_NHD: Tensor, index_BT: Tensor, real_N: Tensor) -> Tensor:
        ctx.save_for_backward(real_N)
        return x_NHD[index_BT.clamp(max=len(x_NHD) - 1)]

    @staticmethod
    def backward(ctx: Any, by_x_BTHD: Tensor) -> tuple[Tensor | None, ...]:
        return by_x_BTHD.flatten(0, 1)[ctx.saved_tensors[0]], None, None


class _JoinRows(torch.autograd.Function):
    """Converts padded rows [B, T, H, D] to the joined row [N, H, D], the inverse of `_PadRows`."""

    @staticmethod
    def forward(ctx: Any, x_BTHD: Tensor, index_BT: Tensor, real_N: Tensor) -> Tensor:
        ctx.save_for_backward(index_BT)
        return x_BTHD.flatten(0, 1)[real_N]

    @staticmethod
    def backward(ctx: Any, by_x_NHD: Tensor) -> tuple[Tensor | None, ...]:
        (index_BT,) = ctx.saved_tensors
        padded = by_x_NHD[index_BT.clamp(max=len(by_x_NHD) - 1)]
        return padded * (index_BT < len(by_x_NHD))[:, :, None, None], None, None


def _block_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None, **options: Any
) -> AttentionOutput:
    attend = flex_attention_forward if isinstance(mask, BlockMask) else sdpa_attention_forward
    result: AttentionOutput = attend(module, q, k, v, mask, **options)
    return result


def _float32_attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> AttentionOutput:
    """Compute the attention in float32; a mask of integers is a `_row_layout`.

    A single token is left to `sdpa`: converting the whole key-value cache for it would cost more than it saves.
    """
    if mask is not None and mask.dtype == torch.int64:
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            # Compiled layers compute everything except the attention itself again in the backward pass.
            keep = partial(create_selective_checkpoint_contexts, [_CPU_FLASH_ATTENTION])
            return checkpoint(_joined_row_attention, module, q, k, v, mask, options, use_reentrant=False, context_fn=keep), None
        return _joined_row_attention(module, q, k, v, mask, options), None
    dtype = autocast_dtype(q)
    if dtype != torch.bfloat16 or q.shape[2] == 1:
        return sdpa_attention_forward(module, q, k, v, mask, **options)
    with without_autocast(q.device):
        output, _ = sdpa_attention_forward(module, *(t.to(dtype).float() for t in (q, k, v)), mask, **options)
    return output.to(dtype), None


def _joined_row_attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, layout: Tensor, options: dict[str, Any]) -> Tensor:
    """Return the attention's output for the joined row [1, N, H, D], of q, k and v [1, H, N, D].

    The row is padded into rows for attention alone, so that no other part of the layer works on padding.
    """
    index_BT, order_BT, segment_BT, prompt_BT = layout[:, :, 0]
    real_N = order_BT.flatten()[: q.shape[2]]
    dtype = autocast_dtype(q)
    with without_autocast(q.device):
        rows = (_PadRows.apply(t.to(dtype)[0].transpose(0, 1), index_BT, real_N).float().transpose(1, 2) for t in (q, k, v))
        output, _ = sdpa_attention_forward(module, *rows, mask_of_segments(segment_BT, prompt_BT), **options)
        return _JoinRows.apply(output.to(dtype), index_BT, real_N)[None]


for _name, _attend in ((BLOCK_ATTENTION, _block_attention), (FLOAT32_ATTENTION, _float32_attention)):
    AttentionInterface.register(_name, _attend)
    AttentionMaskInterface.register(_name, sdpa_mask)
