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
    """Learning-rate factor of a step: up to 1 over the `warmup` share of the steps, then down to 0, both linear."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        return min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))

    return factor


def cosine_to(epochs: int, final: float) -> Callable[[int], float]:
    """Learning-rate factor of an epoch: from 1 in the first to `final` in the last, along a cosine."""

    def factor(epoch: int) -> float:
        progress = min(1.0, epoch / max(1, epochs - 1))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def adamw(model: nn.Module, lr: float, weight_decay: float, factor: Callable[[int], float], interval: str) -> dict[str, Any]:
    """What `configure_optimizers` returns: AdamW and a schedule that steps every `interval` (step or epoch)."""
    return adamw_groups([(model, lr)], weight_decay, factor, interval)


def adamw_groups(
    models: Sequence[tuple[nn.Module, float]], weight_decay: float, factor: Callable[[int], float], interval: str
) -> dict[str, Any]:
    """One AdamW for several networks, each a group with its learning rate: DeepSpeed holds one optimizer only."""
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": lr} for model, lr in models]
    # On a processor, one pass over the memory instead of eight. With a GPU torch chooses by itself: parameters may still be moved.
    fused = None if torch.cuda.is_available() else True
    optimizer = AdamW(groups, weight_decay=weight_decay, betas=(0.9, 0.99), fused=fused)
    compat.disable_gradient_scaling(optimizer)  # there is no scaler; Lightning clips no gradients where there might be one
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": interval},
    }
