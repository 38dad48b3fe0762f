"""Reports the round that an epoch of PPO-Lagrangian was trained on."""

from __future__ import annotations

import lightning as L

from cdpo_lightning.training.callbacks.round_log import RoundLog


class RolloutRound(L.Callback):
    """Reports at the end of the epoch: a row that was logged before training began would be dropped as one of an earlier try."""

    def __init__(self, log: RoundLog) -> None:
        self._log = log

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the data module's row of the round."""
        self._log(trainer, pl_module, trainer.datamodule.row)  # type: ignore[attr-defined]
