"""What Lightning lacks: ranks that are there already, DeepSpeed on any accelerator, and a sharded model made whole."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from cdpo_lightning.config import TrainerConfig
from cdpo_lightning.strategies.environment import RunningRanks
from cdpo_lightning.strategies.zero import ZeroStrategy

__all__ = ["hardware", "whole_model"]


def hardware(config: TrainerConfig, checkpoints: CheckpointIO) -> dict[str, Any]:
    """What `trainer` says, as arguments of Lightning's Trainer."""
    return {
        "accelerator": config.accelerator,
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "precision": None if config.zero else config.precision,
        "strategy": _strategy(config),
        "plugins": [] if config.zero else [checkpoints],
        "accumulate_grad_batches": config.accumulate_grad_batches,
    }


def _strategy(config: TrainerConfig) -> Strategy | str:
    if config.zero:
        return ZeroStrategy(config, RunningRanks())
    if config.processes == 1:
        return "auto"
    return DDPStrategy(cluster_environment=RunningRanks())


def whole_model(trainer: L.Trainer, model: nn.Module) -> AbstractContextManager[nn.Module]:
    """The model with all its parameters on this rank, to sample from and to save, while it is being trained."""
    strategy = trainer.strategy
    return strategy.whole_model(model) if isinstance(strategy, ZeroStrategy) else nullcontext(model)
