"""Logs the dual round of each epoch of PPO-Lagrangian."""

from __future__ import annotations

import lightning as L

from cdpo_lightning.training.callbacks.round_log import RoundLog


class RolloutRound(L.Callback):
    """Logs the round at the end of the epoch; a row logged before the first step is removed as one of an interrupted run."""

    def __init__(self, log: RoundLog) -> None:
        self._log = log

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the round's row, which the data module holds."""
        self._log(trainer, pl_module, trainer.datamodule.row)  # type: ignore[attr-defined]
