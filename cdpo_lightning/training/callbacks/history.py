"""Copies the metrics that a stage logs to the history of the run."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.store.history import History


class HistoryCallback(L.Callback):
    """Adds a row every `log_every_n_steps` steps; writes the table at the end of each epoch, before the checkpoint."""

    def __init__(self, history: History, stage: str, who: str = "") -> None:
        self._history, self._stage, self._who = history, stage, who

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the rows after the checkpoint that the stage resumes from: they are logged again."""
        self._history.forget(self._stage, self._who, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Add a row with the metrics that the module logged, and the learning rate, if the step is to be logged."""
        if (trainer.global_step - 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        # Without dual/*: Lightning keeps the last round's values here, but not over a checkpoint. The round has a row of its own.
        logged = trainer.callback_metrics.items()
        values = {name: float(value) for name, value in logged if not name.startswith("dual/")}
        self._require_finite(values, trainer.global_step)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        row = {"stage": self._stage, "who": self._who, "epoch": trainer.current_epoch, "step": trainer.global_step}
        self._history.log(**row, lr=lr, **values)

    def _require_finite(self, values: dict[str, float], step: int) -> None:
        """Raise an error unless all values are finite.

        Raises:
            NumericsError: a value is nan or infinite, so training on is useless.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise NumericsError(
                    f"{self._stage}: {name} is {value} at step {step}, expected a finite number; lower {self._stage}.lr, "
                    "or look at the data and the model it starts from"
                )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table so far."""
        self._history.write()
