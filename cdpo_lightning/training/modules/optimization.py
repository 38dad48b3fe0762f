"""The optimizer and its schedules, shared by all stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from cdpo_lightning import compat


def linear_warmup_decay(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the learning-rate factor as a function of the step: linear up to 1 in the `warmup` share of the steps, then to 0."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        return min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))

    return factor


def cosine_to(epochs: int, final: float) -> Callable[[int], float]:
    """Return the learning-rate factor as a function of the epoch: a cosine from 1 in the first to `final` in the last."""

    def factor(epoch: int) -> float:
        progress = min(1.0, epoch / max(1, epochs - 1))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def adamw(model: nn.Module, lr: float, weight_decay: float, factor: Callable[[int], float], interval: str) -> dict[str, Any]:
    """Return the result of `configure_optimizers`: AdamW and a schedule that steps every `interval` (step or epoch)."""
    return adamw_groups([(model, lr)], weight_decay, factor, interval)


def adamw_groups(
    models: Sequence[tuple[nn.Module, float]], weight_decay: float, factor: Callable[[int], float], interval: str
) -> dict[str, Any]:
    """Return one AdamW for several networks, each a group with its learning rate, because DeepSpeed allows one optimizer."""
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": lr} for model, lr in models]
    # Fused: on a CPU one pass over the memory in place of eight. With a GPU torch decides: parameters may still be moved there.
    fused = None if torch.cuda.is_available() else True
    optimizer = AdamW(groups, weight_decay=weight_decay, betas=(0.9, 0.99), fused=fused)
    compat.disable_gradient_scaling(optimizer)  # there is no scaler; else Lightning refuses to clip the gradients
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": interval},
    }
