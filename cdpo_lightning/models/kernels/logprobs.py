"""Log-probabilities of tokens and of responses, from hidden states.

Shape legend: N predicted tokens, H hidden, V vocabulary, R responses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cdpo_lightning.models.kernels.products import asked_type, better_in_float32, without_autocast

CHUNK_ELEMENTS = 2**26  # logits held at once, so memory does not grow with the batch
CONVERTED_ELEMENTS = 2**22  # of the head that are converted to another type at once; a copy of all of it is mostly page faults


def token_logp(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """log pi(token), nats, shape [N], in float32 or better.

    Only the positions given are projected on the vocabulary, one part of it after the other: the memory is that of `CHUNK_ELEMENTS`
    logits or two times that. If there are no more than so many they are kept for the backward pass, else computed again.
    """
    size, keep = _part(hidden_NH, weight_VH), torch.is_grad_enabled() and len(hidden_NH) * len(weight_VH) <= CHUNK_ELEMENTS
    logp: Tensor = _TokenLogp.apply(hidden_NH, weight_VH, bias_V, target_N, size, keep)
    return logp


def _part(hidden_NH: Tensor, weight_VH: Tensor) -> int:
    """How much of the vocabulary is projected on at once."""
    size = min(len(weight_VH), max(1, CHUNK_ELEMENTS // max(1, len(hidden_NH))))
    return size if _product_type(hidden_NH) == weight_VH.dtype else min(size, max(1, CONVERTED_ELEMENTS // weight_VH.shape[1]))


class _TokenLogp(torch.autograd.Function):
    """z = h W' + b; logp = z[target] - lse(z). Backwards: d logp / dz = onehot(target) - softmax(z)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_N: Tensor, size: int, keep: bool
    ) -> Tensor:
        ctx.size, ctx.dtype, kept = size, _product_type(hidden_NH), []
        hidden = hidden_NH.to(ctx.dtype)
        lse_N = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.promote_types(ctx.dtype, torch.float32))
        picked_N = lse_N
        for start in range(0, len(weight_VH), size):
            z = _logits(hidden, *_factors(weight_VH, bias_V, slice(start, start + size), ctx.dtype))
            column_N1, inside_N = _column(target_N, start, z.shape[1])
            picked_N = z.gather(1, column_N1)[:, 0].where(inside_N, picked_N)
            lse_N = torch.logaddexp(lse_N, z.logsumexp(1))
            if keep:
                kept.append(z)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N, lse_N, *kept)
        return picked_N - lse_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, target_N, lse_N, *kept = ctx.saved_tensors
        hidden = hidden_NH.to(ctx.dtype)
        by_hidden = torch.zeros_like(hidden, dtype=lse_N.dtype) if ctx.needs_input_grad[0] else None
        by_weight = torch.empty_like(weight_VH) if ctx.needs_input_grad[1] else None
        by_bias = torch.empty_like(bias_V) if bias_V is not None and ctx.needs_input_grad[2] else None
        for number, start in enumerate(range(0, len(weight_VH), ctx.size)):
            part = slice(start, start + ctx.size)
            weight, bias = _factors(weight_VH, bias_V, part, ctx.dtype)
            z = kept[number] - lse_N[:, None] if kept else _logits(hidden, weight, bias).sub_(lse_N[:, None])
            column_N1, inside_N = _column(target_N, start, z.shape[1])
            by_z = z.exp_().mul_(-upstream_N[:, None])
            by_z.scatter_add_(1, column_N1, (upstream_N * inside_N)[:, None])
            factor = by_z.to(ctx.dtype)
            with without_autocast(hidden.device):
                if by_hidden is not None:
                    _add_product(by_hidden, factor, weight)
                if by_weight is not None:
                    by_weight[part] = factor.t() @ hidden
                if by_bias is not None:
                    by_bias[part] = by_z.sum(0)
        return None if by_hidden is None else by_hidden.to(hidden_NH.dtype), by_weight, by_bias, None, None, None


def _column(target_N: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Where each target is in this part of the vocabulary [N, 1], and whether it is in it [N]; if not, the column is any."""
    column_N = target_N - start
    return column_N.clamp(0, size - 1)[:, None], (column_N >= 0) & (column_N < size)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, summed in the total's type: bf16 would lose what small parts add."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _factors(weight_VH: Tensor, bias_V: Tensor | None, part: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A part of the head, in the type of the products."""
    return weight_VH[part].to(dtype), bias_V if bias_V is None else bias_V[part].to(dtype)


def _product_type(hidden: Tensor) -> torch.dtype:
    requested = asked_type(hidden)
    return torch.float32 if requested == torch.bfloat16 and better_in_float32(hidden.device) else requested


def _logits(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """A new tensor, in float32 or better."""
    with without_autocast(hidden_NH.device):
        logits = F.linear(hidden_NH, weight_VH, bias_V)
    return logits if logits.dtype == torch.float64 else logits.float()


def sum_per_response(token_logp_N: Tensor, response_N: Tensor, responses: int) -> Tensor:
    """log pi(y|x), nats, shape [R]: the sum over the tokens of each response, never the mean."""
    return token_logp_N.new_zeros(responses).index_add(0, response_N, token_logp_N)
