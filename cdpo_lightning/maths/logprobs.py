"""Log-probabilities of tokens and of responses, from hidden states.

Shape legend: N predicted tokens, H hidden, V vocabulary, R responses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cdpo_lightning.maths.products import asked_type, better_in_float32, without_autocast

CHUNK_ELEMENTS = 2**26  # logits held at once, so memory does not grow with the batch


def token_logp(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """log pi(token), nats, shape [N], in float32 or better.

    Only the positions given are projected on the vocabulary, in chunks: the memory is that of one chunk or two. The softmax of a
    single chunk is kept for the backward pass; the logits of several are computed again.
    """
    rows = max(1, CHUNK_ELEMENTS // weight_VH.shape[0])
    keep = torch.is_grad_enabled() and len(hidden_NH) <= rows
    logp: Tensor = _TokenLogp.apply(hidden_NH, weight_VH, bias_V, target_N, rows, keep)  # type: ignore[no-untyped-call]
    return logp


class _TokenLogp(torch.autograd.Function):
    """z = h W' + b; logp = z[target] - lse(z). Backwards: d logp / dz = onehot(target) - softmax(z)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_N: Tensor, rows: int, keep: bool
    ) -> Tensor:
        ctx.rows, ctx.dtype = rows, _product_type(hidden_NH)
        hidden, weight, bias = _factors(ctx.dtype, hidden_NH, weight_VH, bias_V)
        logp, lse = [], []
        for h, target in zip(hidden.split(rows), target_N.split(rows), strict=True):
            z = _logits(h, weight, bias)
            top = z.amax(1, keepdim=True)
            picked = z.gather(1, target[:, None])
            softmax = z.sub_(top).exp_()
            total = softmax.sum(1, keepdim=True)
            lse.append(total.log().add_(top))
            logp.append(picked.sub_(lse[-1])[:, 0])
        kept = softmax.div_(total) if keep else None
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N, torch.cat(lse), kept)
        return torch.cat(logp)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, target_N, lse_N1, kept = ctx.saved_tensors
        hidden, weight, bias = _factors(ctx.dtype, hidden_NH, weight_VH, bias_V)
        by_hidden, by_weight, by_bias = (
            torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) if t is not None and needed else None
            for t, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            upstream = upstream_N[part, None]
            softmax = _logits(hidden[part], weight, bias).sub_(lse_N1[part]).exp_() if kept is None else kept.clone()
            by_z = softmax.mul_(-upstream).scatter_add_(1, target_N[part, None], upstream)
            factor = by_z.to(hidden.dtype)
            with without_autocast(hidden.device):
                if by_hidden is not None:
                    by_hidden[part] = factor @ weight
                if by_weight is not None:
                    _add_product(by_weight, factor.t(), hidden[part])
                if by_bias is not None:
                    by_bias += by_z.sum(0)
        given = (hidden_NH, weight_VH, bias_V)
        found = (g if g is None else g.to(t.dtype) for g, t in zip((by_hidden, by_weight, by_bias), given, strict=True))
        return (*found, None, None, None)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, summed in the total's type: bf16 would lose what small chunks add."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _product_type(hidden: Tensor) -> torch.dtype:
    asked = asked_type(hidden)
    return torch.float32 if asked == torch.bfloat16 and better_in_float32(hidden.device) else asked


def _factors(dtype: torch.dtype, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    return hidden.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)


def _logits(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """A new tensor, in float32 or better."""
    with without_autocast(hidden_NH.device):
        logits = F.linear(hidden_NH, weight_VH, bias_V)
    return logits if logits.dtype == torch.float64 else logits.float()


def sum_per_response(token_logp_N: Tensor, response_N: Tensor, responses: int) -> Tensor:
    """log pi(y|x), nats, shape [R]: the sum over the tokens of each response, never the mean."""
    return token_logp_N.new_zeros(responses).index_add(0, response_N, token_logp_N)
