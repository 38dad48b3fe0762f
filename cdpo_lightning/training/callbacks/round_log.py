"""Logs a round of the dual loop: to the run's history, to the Lightning loggers and to the screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning as L

from cdpo_lightning import ranks
from cdpo_lightning.constraints.dual_round import HistoryRow
from cdpo_lightning.store.history import History


@dataclass(frozen=True)
class RoundLog:
    """Logs the rounds of one policy."""

    history: History
    who: str  # the policy's name
    show: Callable[[HistoryRow], None]  # prints one line

    def __call__(self, trainer: L.Trainer, module: L.LightningModule, row: HistoryRow) -> None:
        """Log `row`; its keys that begin with `dual/` go to the loggers too. Call it at the end of an epoch."""
        position = {"stage": "policy", "who": self.who, "epoch": trainer.current_epoch, "step": trainer.global_step}
        self.history.log(**position, **row)
        logged = {name: value for name, value in row.items() if name.startswith("dual/")} | {"dual/round": float(row["round"])}
        module.log_dict(logged, sync_dist=ranks.world_size() > 1)
        self.show({**position, **row})
