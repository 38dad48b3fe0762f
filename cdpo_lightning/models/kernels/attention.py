"""The attention of packed rows: dense masks anywhere; one row of blocks on a GPU; one row, in float32, where bf16 is slow.

The latter two are transformers' `sdpa` for whatever else the model is given, in sampling and as a score model.
Shape legend: B rows, T positions, N tokens of all rows without padding, H heads, D a head.
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

from cdpo_lightning.models.kernels.products import asked_type, without_autocast
from cdpo_lightning.text.packing import PackedRows, attention_mask, join_rows, mask_of_segments

BLOCKS, FLOAT32 = "sdpa_or_blocks", "sdpa_float32"  # as transformers knows them
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
Output = tuple[Tensor, Tensor | None]


def use(model: nn.Module, name: str) -> None:
    """Has the model attend by `BLOCKS` or `FLOAT32` where it attended by `sdpa`; not one that cannot be handed packed rows."""
    config: Any = model.config
    free = getattr(model, "packs", True) and model._can_set_attn_implementation()  # Falcon's asks for names it knows
    if free and config._attn_implementation == "sdpa":
        config._attn_implementation = name


def arranged(model: nn.Module, rows: PackedRows) -> tuple[PackedRows, Tensor | BlockMask]:
    """The batch as the model's attention takes it, and its mask. All rows are one row without padding if it can see them apart."""
    name = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if name == BLOCKS:
        one = join_rows(rows)
        return one, block_mask(one)
    if name == FLOAT32:
        return join_rows(rows), _layout(rows)
    return rows, attention_mask(rows)


def block_mask(rows: PackedRows) -> BlockMask:
    """`packing.attention_mask` as blocks, those that are all hidden left out."""
    segment_BT, prompt_BT = rows.segment_BT, rows.prompt_BT

    def looks(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine, theirs = segment_BT[b, query], segment_BT[b, key]
        return (query >= key) & ((theirs == mine) | (theirs == prompt_BT[b, query]))

    batch, length = segment_BT.shape
    make = torch.compile(create_block_mask) if segment_BT.is_cuda else create_block_mask  # else all T x T entries are made
    return make(looks, batch, None, length, length, device=segment_BT.device)


def _layout(rows: PackedRows) -> Tensor:
    """How the joined row comes apart, integers [4, B, 1, T], the shape of a mask that transformers hands on as it is.

    Each position's place in the joined row (N: padding); all positions in the order of that row, padding last; the numbers of
    segment and prompt.
    """
    real = rows.segment_BT >= 0
    location = torch.where(real, real.flatten().cumsum(0).view_as(real) - 1, rows.tokens)
    order = (~real).flatten().argsort(stable=True).view_as(real)
    return torch.stack([location, order, rows.segment_BT, rows.prompt_BT])[:, :, None]


class _Pad(torch.autograd.Function):
    """Tokens of the joined row [N, H, D] to rows [B, T, H, D]; padding is some token, which only padding sees."""

    @staticmethod
    def forward(ctx: Any, x_NHD: Tensor, place_BT: Tensor, real_N: Tensor) -> Tensor:
        ctx.save_for_backward(real_N)
        return x_NHD[place_BT.clamp(max=len(x_NHD) - 1)]

    @staticmethod
    def backward(ctx: Any, by_x_BTHD: Tensor) -> tuple[Tensor | None, ...]:
        return by_x_BTHD.flatten(0, 1)[ctx.saved_tensors[0]], None, None


class _Join(torch.autograd.Function):
    """`_Pad` backwards: rows [B, T, H, D] to tokens [N, H, D]."""

    @staticmethod
    def forward(ctx: Any, x_BTHD: Tensor, place_BT: Tensor, real_N: Tensor) -> Tensor:
        ctx.save_for_backward(place_BT)
        return x_BTHD.flatten(0, 1)[real_N]

    @staticmethod
    def backward(ctx: Any, by_x_NHD: Tensor) -> tuple[Tensor | None, ...]:
        (place_BT,) = ctx.saved_tensors
        padded = by_x_NHD[place_BT.clamp(max=len(by_x_NHD) - 1)]
        return padded * (place_BT < len(by_x_NHD))[:, :, None, None], None, None


def _by_blocks(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None, **options: Any) -> Output:
    attend = flex_attention_forward if isinstance(mask, BlockMask) else sdpa_attention_forward
    result: Output = attend(module, q, k, v, mask, **options)
    return result


def _in_float32(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Output:
    """In float32 unless a single token is read, whose cache would have to be converted. A mask of integers is a `_layout`."""
    if mask is not None and mask.dtype == torch.int64:
        if torch.compiler.is_compiling() and torch.is_grad_enabled():  # what compiled layers compute again is all but the attention
            keep = partial(create_selective_checkpoint_contexts, [_FLASH])
            return checkpoint(_joined_rows, module, q, k, v, mask, options, use_reentrant=False, context_fn=keep), None
        return _joined_rows(module, q, k, v, mask, options), None
    dtype = asked_type(q)
    if dtype != torch.bfloat16 or q.shape[2] == 1:
        return sdpa_attention_forward(module, q, k, v, mask, **options)
    with without_autocast(q.device):
        output, _ = sdpa_attention_forward(module, *(t.to(dtype).float() for t in (q, k, v)), mask, **options)
    return output.to(dtype), None


def _joined_rows(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, layout: Tensor, options: dict[str, Any]) -> Tensor:
    """The joined row [1, H, N, D] padded to its rows for attention alone: whatever works on tokens never meets padding."""
    place_BT, order_BT, segment_BT, prompt_BT = layout[:, :, 0]
    real_N = order_BT.flatten()[: q.shape[2]]
    dtype = asked_type(q)
    with without_autocast(q.device):
        rows = (_Pad.apply(t.to(dtype)[0].transpose(0, 1), place_BT, real_N).float().transpose(1, 2) for t in (q, k, v))
        output, _ = sdpa_attention_forward(module, *rows, mask_of_segments(segment_BT, prompt_BT), **options)
        return _Join.apply(output.to(dtype), place_BT, real_N)[None]


for _name, _attend in ((BLOCKS, _by_blocks), (FLOAT32, _in_float32)):
    AttentionInterface.register(_name, _attend)
    AttentionMaskInterface.register(_name, sdpa_mask)
