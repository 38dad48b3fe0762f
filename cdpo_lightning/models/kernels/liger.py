"""Liger's fused projection and log-softmax (the extra `liger`): on a GPU, where it is installed and gives what ours gives."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from cdpo_lightning.models.kernels.logprobs import token_logp
from cdpo_lightning.models.kernels.products import asked_type, without_autocast

TokenLogp = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
_log = logging.getLogger(__name__)


def fastest_token_logp(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """`maths.logprobs.token_logp`, by Liger's kernels where they can be had."""
    fused = _usable_on(hidden_NH.device)
    if fused is None:
        return token_logp(hidden_NH, weight_VH, target_N, bias_V)
    dtype = asked_type(hidden_NH)
    with without_autocast(hidden_NH.device):
        return fused(hidden_NH.to(dtype), weight_VH.to(dtype), target_N, bias_V if bias_V is None else bias_V.to(dtype))


@cache
def _usable_on(device: torch.device) -> TokenLogp | None:
    if device.type != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return None
    try:
        fused = fused_token_logp()
        if agrees(fused, device):
            return fused
        reason = "its log-probabilities or gradients are not ours"
    except (ImportError, RuntimeError, AssertionError, TypeError, ValueError) as error:  # a version without it, or without a Triton
        reason = f"{type(error).__name__}: {error}"
    _log.warning("the installed liger_kernel is not used (%s); 0.8.5 was seen to agree", reason)
    return None


def fused_token_logp() -> TokenLogp:
    """Liger's own, chosen or not.

    Raises:
        ImportError: it is not installed.
    """
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none")
    return lambda hidden, weight, target, bias: -loss(weight, hidden, target, bias)


def agrees(fused: TokenLogp, device: torch.device) -> bool:
    """Whether values and gradients are ours in float32, each token with a gradient of its own: older versions take one for all."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=draw).to(device).requires_grad_() for shape in ((13, 32), (48, 32)))
    target, upstream = torch.arange(13, device=device), torch.linspace(-1, 2, 13, device=device)

    def result(function: TokenLogp) -> list[Tensor]:
        value = function(hidden, weight, target, None)
        return [value, *torch.autograd.grad(value, [hidden, weight], upstream)]

    with torch.enable_grad(), without_autocast(device):  # whatever pass asks first
        pairs = zip(result(fused), result(token_logp), strict=True)
        return all(torch.allclose(theirs, ours, rtol=1e-2, atol=1e-2) for theirs, ours in pairs)  # TF32's rounding
