"""Log-probabilities of tokens and of responses, computed from hidden states.

Shape legend: N predicted tokens, H hidden, V vocabulary, R responses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cdpo_lightning.models.kernels.products import autocast_dtype, faster_in_float32, without_autocast

LOGITS_PER_CHUNK = 2**26  # logits held at once, so that memory does not grow with the batch
WEIGHTS_PER_CHUNK = 2**22  # weights of the head converted to another type at once: a copy of the whole head is slow (page faults)


def token_logp(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """Return log pi(token), nats, shape [N], in float32 or float64.

    The hidden states are projected on one chunk of the vocabulary after the other, in the memory of one or two times
    `LOGITS_PER_CHUNK` logits. If there are no more logits than that in all, they are kept for the backward pass, else it computes
    them again.
    """
    size, keep = _chunk_size(hidden_NH, weight_VH), torch.is_grad_enabled() and len(hidden_NH) * len(weight_VH) <= LOGITS_PER_CHUNK
    logp: Tensor = _TokenLogp.apply(hidden_NH, weight_VH, bias_V, target_N, size, keep)
    return logp


def _chunk_size(hidden_NH: Tensor, weight_VH: Tensor) -> int:
    """Return how many tokens of the vocabulary form a chunk."""
    size = min(len(weight_VH), max(1, LOGITS_PER_CHUNK // max(1, len(hidden_NH))))
    return size if _product_dtype(hidden_NH) == weight_VH.dtype else min(size, max(1, WEIGHTS_PER_CHUNK // weight_VH.shape[1]))


class _TokenLogp(torch.autograd.Function):
    """z = h W' + b; logp = z[target] - lse(z). Backwards: d logp / dz = onehot(target) - softmax(z)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_N: Tensor, size: int, keep: bool
    ) -> Tensor:
        ctx.size, ctx.dtype, kept = size, _product_dtype(hidden_NH), []
        hidden = hidden_NH.to(ctx.dtype)
        lse_N = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.promote_types(ctx.dtype, torch.float32))
        target_logit_N = lse_N
        for start in range(0, len(weight_VH), size):
            z = _logits(hidden, *_head_chunk(weight_VH, bias_V, slice(start, start + size), ctx.dtype))
            column_N1, inside_N = _column_in_chunk(target_N, start, z.shape[1])
            target_logit_N = z.gather(1, column_N1)[:, 0].where(inside_N, target_logit_N)
            lse_N = torch.logaddexp(lse_N, z.logsumexp(1))
            if keep:
                kept.append(z)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N, lse_N, *kept)
        return target_logit_N - lse_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, target_N, lse_N, *kept = ctx.saved_tensors
        hidden = hidden_NH.to(ctx.dtype)
        by_hidden = torch.zeros_like(hidden, dtype=lse_N.dtype) if ctx.needs_input_grad[0] else None
        by_weight = torch.empty_like(weight_VH) if ctx.needs_input_grad[1] else None
        by_bias = torch.empty_like(bias_V) if bias_V is not None and ctx.needs_input_grad[2] else None
        for number, start in enumerate(range(0, len(weight_VH), ctx.size)):
            chunk = slice(start, start + ctx.size)
            weight, bias = _head_chunk(weight_VH, bias_V, chunk, ctx.dtype)
            z = kept[number] - lse_N[:, None] if kept else _logits(hidden, weight, bias).sub_(lse_N[:, None])
            column_N1, inside_N = _column_in_chunk(target_N, start, z.shape[1])
            by_z = z.exp_().mul_(-upstream_N[:, None])
            by_z.scatter_add_(1, column_N1, (upstream_N * inside_N)[:, None])
            factor = by_z.to(ctx.dtype)
            with without_autocast(hidden.device):
                if by_hidden is not None:
                    _add_product(by_hidden, factor, weight)
                if by_weight is not None:
                    by_weight[chunk] = factor.t() @ hidden
                if by_bias is not None:
                    by_bias[chunk] = by_z.sum(0)
        return None if by_hidden is None else by_hidden.to(hidden_NH.dtype), by_weight, by_bias, None, None, None


def _column_in_chunk(target_N: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the column of each target in a chunk of the vocabulary [N, 1], and whether it is in the chunk [N].

    The column of a target outside the chunk is an arbitrary valid one.
    """
    column_N = target_N - start
    return column_N.clamp(0, size - 1)[:, None], (column_N >= 0) & (column_N < size)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to `total`, in the type of `total`: in bf16 the sum would lose small chunks."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _head_chunk(weight_VH: Tensor, bias_V: Tensor | None, chunk: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a chunk of the vocabulary, in the type of the products."""
    return weight_VH[chunk].to(dtype), bias_V if bias_V is None else bias_V[chunk].to(dtype)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    dtype = autocast_dtype(hidden)
    return torch.float32 if dtype == torch.bfloat16 and faster_in_float32(hidden.device) else dtype


def _logits(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """Return the logits in a new tensor, which may be overwritten, in float32 or float64."""
    with without_autocast(hidden_NH.device):
        logits = F.linear(hidden_NH, weight_VH, bias_V)
    return logits if logits.dtype == torch.float64 else logits.float()


def sum_per_response(token_logp_N: Tensor, response_N: Tensor, responses: int) -> Tensor:
    """Return log pi(y|x), nats, shape [R]: the sum over the tokens of each response, not the mean."""
    return token_logp_N.new_zeros(responses).index_add(0, response_N, token_logp_N)
