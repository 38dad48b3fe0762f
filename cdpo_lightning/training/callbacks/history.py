"""Puts what a stage logs into the run's history."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.store.history import History


class HistoryCallback(L.Callback):
    """A row every `log_every_n_steps` steps; the table is written at the end of each epoch, before the checkpoint."""

    def __init__(self, history: History, stage: str, who: str = "") -> None:
        self._history, self._stage, self._who = history, stage, who

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rows after the checkpoint, or of an earlier try, are logged again."""
        self._history.forget(self._stage, self._who, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """One row, if the step was logged: the values that the module logged, and the learning rate."""
        if (trainer.global_step - 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        # Lightning keeps the last round's values among them, but not over a checkpoint; the round has a row of its own.
        logged = trainer.callback_metrics.items()
        values = {name: float(value) for name, value in logged if not name.startswith("dual/")}
        self._require_finite(values, trainer.global_step)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        location = {"stage": self._stage, "who": self._who, "epoch": trainer.current_epoch, "step": trainer.global_step}
        self._history.log(**location, lr=lr, **values)

    def _require_finite(self, values: dict[str, float], step: int) -> None:
        """Raises:
        NumericsError: a value that was logged is nan or infinite; the rest of the run would be worth nothing.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise NumericsError(
                    f"{self._stage}: {name} is {value} at step {step}, expected a finite number; lower {self._stage}.lr, "
                    "or look at the data and the model it starts from"
                )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The table so far, on disk."""
        self._history.write()
