"""The attention of packed rows: dense masks anywhere; one row of blocks on a GPU; float32 where bf16 is slow.

The latter two are transformers' `sdpa` for whatever else the model is given, in sampling and as a score model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cdpo_lightning.data.packing import PackedRows, attention_mask, joined
from cdpo_lightning.maths.products import asked_type, without_autocast

BLOCKS, FLOAT32 = "sdpa_or_blocks", "sdpa_float32"  # as transformers knows them
Output = tuple[Tensor, Tensor | None]


def use(model: nn.Module, name: str) -> None:
    """Has the model attend by `BLOCKS` or `FLOAT32` where it attended by `sdpa`."""
    config: Any = model.config
    if config._attn_implementation == "sdpa":
        config._attn_implementation = name


def arranged(model: nn.Module, rows: PackedRows) -> tuple[PackedRows, Tensor | BlockMask]:
    """The batch as the model's attention takes it, and its mask: in blocks, all rows are one row without padding."""
    config: Any = model.config
    if config._attn_implementation != BLOCKS:
        return rows, attention_mask(rows)
    rows = joined(rows)
    return rows, block_mask(rows)


def block_mask(rows: PackedRows) -> BlockMask:
    """`packing.attention_mask` as blocks, those that are all hidden left out."""
    segment_BT, prompt_BT = rows.segment_BT, rows.prompt_BT

    def looks(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine, theirs = segment_BT[b, query], segment_BT[b, key]
        return (query >= key) & ((theirs == mine) | (theirs == prompt_BT[b, query]))

    batch, length = segment_BT.shape
    make = torch.compile(create_block_mask) if segment_BT.is_cuda else create_block_mask  # else all T x T entries are made
    return make(looks, batch, None, length, length, device=segment_BT.device)


def _by_blocks(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None, **options: Any) -> Output:
    attend = flex_attention_forward if isinstance(mask, BlockMask) else sdpa_attention_forward
    found: Output = attend(module, q, k, v, mask, **options)
    return found


def _in_float32(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Output:
    """In float32 unless a single token is read, whose cache would have to be converted."""
    dtype = asked_type(q)
    if dtype != torch.bfloat16 or q.shape[2] == 1:
        return sdpa_attention_forward(module, q, k, v, mask, **options)
    with without_autocast(q.device):
        output, _ = sdpa_attention_forward(module, *(t.to(dtype).float() for t in (q, k, v)), mask, **options)
    return output.to(dtype), None


for _name, _attend in ((BLOCKS, _by_blocks), (FLOAT32, _in_float32)):
    AttentionInterface.register(_name, _attend)
    AttentionMaskInterface.register(_name, sdpa_mask)
