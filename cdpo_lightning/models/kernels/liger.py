"""Liger's fused projection and log-softmax (the extra `liger`), on a GPU, if it gives the values and gradients of `token_logp`."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from cdpo_lightning.models.kernels.logprobs import token_logp
from cdpo_lightning.models.kernels.products import autocast_dtype, without_autocast

TokenLogp = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
_log = logging.getLogger(__name__)


def fastest_token_logp(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """Return `logprobs.token_logp` [N], nats, computed by Liger's kernels where they can be used."""
    fused = _fused_function_for(hidden_NH.device)
    if fused is None:
        return token_logp(hidden_NH, weight_VH, target_N, bias_V)
    dtype = autocast_dtype(hidden_NH)
    with without_autocast(hidden_NH.device):
        return fused(hidden_NH.to(dtype), weight_VH.to(dtype), target_N, bias_V if bias_V is None else bias_V.to(dtype))


@cache
def _fused_function_for(device: torch.device) -> TokenLogp | None:
    if device.type != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return None
    try:
        fused = liger_token_logp()
        if matches_token_logp(fused, device):
            return fused
        reason = "its log-probabilities or gradients differ from ours"
    except (ImportError, RuntimeError, AssertionError, TypeError, ValueError) as error:  # another version, or no Triton
        reason = f"{type(error).__name__}: {error}"
    _log.warning("the installed liger_kernel is not used (%s); version 0.8.5 is known to work", reason)
    return None


def liger_token_logp() -> TokenLogp:
    """Return Liger's function, unchecked.

    Raises:
        ImportError: it is not installed.
    """
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none")
    return lambda hidden, weight, target, bias: -loss(weight, hidden, target, bias)


def matches_token_logp(fused: TokenLogp, device: torch.device) -> bool:
    """Return whether values and gradients are those of `token_logp` in float32.

    Each token has an upstream gradient of its own: older versions of Liger take the first one for all.
    """
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=draw).to(device).requires_grad_() for shape in ((13, 32), (48, 32)))
    target, upstream = torch.arange(13, device=device), torch.linspace(-1, 2, 13, device=device)

    def value_and_gradients(function: TokenLogp) -> list[Tensor]:
        value = function(hidden, weight, target, None)
        return [value, *torch.autograd.grad(value, [hidden, weight], upstream)]

    with torch.enable_grad(), without_autocast(device):  # the first caller may be a pass without gradient, or in bf16
        pairs = zip(value_and_gradients(fused), value_and_gradients(token_logp), strict=True)
        return all(torch.allclose(theirs, ours, rtol=1e-2, atol=1e-2) for theirs, ours in pairs)  # TF32's rounding
