"""What Lightning lacks: ranks that are there already, DeepSpeed on any accelerator, and a sharded model made whole."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
from lightning.pytorch.plugins import CheckpointIO, HalfPrecision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

from cdpo_lightning.config import TrainerConfig
from cdpo_lightning.training.strategies.environment import RunningRanks
from cdpo_lightning.training.strategies.gathering import on_host
from cdpo_lightning.training.strategies.zero import ZeroStrategy

__all__ = ["hardware", "host_copies", "whole_model"]


class TrueHalf(HalfPrecision):
    """bf16 weights; batches stay as they are, as under DeepSpeed: log-probabilities of -200 nats need float32."""

    def convert_input(self, data: Any) -> Any:
        """`data` as it is."""
        return data


def hardware(config: TrainerConfig, checkpoints: CheckpointIO) -> dict[str, Any]:
    """What `trainer` says, as arguments of Lightning's Trainer."""
    half = [TrueHalf("bf16-true")] if config.precision == "bf16-true" and not config.zero else []
    return {
        "accelerator": config.accelerator,
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "precision": None if config.zero or half else config.precision,
        "strategy": _strategy(config),
        "plugins": [] if config.zero else [checkpoints, *half],
        "accumulate_grad_batches": config.accumulate_grad_batches,
    }


def _strategy(config: TrainerConfig) -> Strategy | str:
    if config.zero:
        return ZeroStrategy(config, RunningRanks())
    if config.processes == 1:
        return "auto"
    return DDPStrategy(cluster_environment=RunningRanks())


def whole_model(trainer: L.Trainer, model: nn.Module) -> AbstractContextManager[nn.Module]:
    """The model as this rank can run it by itself, to sample from, while it is being trained."""
    strategy = trainer.strategy
    return strategy.whole_model(model) if isinstance(strategy, ZeroStrategy) else nullcontext(model)


def host_copies(trainer: L.Trainer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a model's parameters in the memory of the host, while it is being trained; all ranks come here together."""
    strategy = trainer.strategy
    return on_host(parameters, sharded=isinstance(strategy, ZeroStrategy) and strategy.zero_stage_3)
