"""Lightning plugins and strategies: ranks that are already connected, DeepSpeed on any accelerator, gathering of sharded models."""

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

__all__ = ["hardware_arguments", "host_copies", "whole_model"]


class TrueHalf(HalfPrecision):
    """bf16 weights, but float32 batches, as under DeepSpeed: in bf16 a log-probability of -200 nats is off by half a nat."""

    def convert_input(self, data: Any) -> Any:
        """Return `data` unchanged."""
        return data


def hardware_arguments(config: TrainerConfig, checkpoints: CheckpointIO) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that choose devices, precision and strategy.

    The cluster environment is ours in a single process too: otherwise Lightning looks for Slurm and other launchers.
    """
    half = [TrueHalf("bf16-true")] if config.precision == "bf16-true" and not config.zero else []
    return {
        "accelerator": config.accelerator,
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "precision": None if config.zero or half else config.precision,
        "strategy": _strategy(config),
        "plugins": [RunningRanks(), *([] if config.zero else [checkpoints, *half])],
        "accumulate_grad_batches": config.accumulate_grad_batches,
    }


def _strategy(config: TrainerConfig) -> Strategy | str:
    if config.zero:
        return ZeroStrategy(config)
    return "auto" if config.processes == 1 else DDPStrategy()


def whole_model(trainer: L.Trainer, model: nn.Module) -> AbstractContextManager[nn.Module]:
    """Yield a model in training in a form that this rank can sample from: unsharded under ZeRO-3, else the model itself."""
    strategy = trainer.strategy
    return strategy.whole_model(model) if isinstance(strategy, ZeroStrategy) else nullcontext(model)


def host_copies(trainer: L.Trainer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return unsharded copies of parameters in training, in the host's memory; all ranks must call this together."""
    strategy = trainer.strategy
    return on_host(parameters, sharded=isinstance(strategy, ZeroStrategy) and strategy.zero_stage_3)
