"""Puts the rounds of PPO-Lagrangian into the history and on the screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from cdpo_lightning.store.history import History


class RolloutLog(L.Callback):
    """One row an epoch, at its end: rows that were logged before training began would be dropped as an earlier try's."""

    def __init__(self, history: History, who: str, c_limit: float, say: Callable[[dict[str, Any]], None]) -> None:
        self._history, self._who, self._c_limit, self._say = history, who, c_limit, say

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The round that the epoch was trained on."""
        row = trainer.datamodule.row  # type: ignore[attr-defined]
        location = {"stage": "policy", "who": self._who, "epoch": trainer.current_epoch, "step": trainer.global_step}
        self._history.log(**location, **row)
        pl_module.log_dict({k: v for k, v in row.items() if k.startswith("dual/")}, rank_zero_only=True)
        self._say({**location, **row, "dual/c_limit": self._c_limit})
