"""Counts the compute of training: tokens with a gradient, and seconds."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class ComputeMeter(L.Callback):
    """Counts tokens and seconds of a stage, over all resumed parts of it; must come after all callbacks whose time counts."""

    def __init__(self) -> None:
        self.tokens, self.seconds, self._last = 0, 0.0, 0.0

    def on_train_start(self, *_: Any) -> None:
        """Start the timer."""
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the tokens of the batch, without padding."""
        self.tokens += batch.trained_tokens

    def on_train_epoch_end(self, *_: Any) -> None:
        """Add the seconds of the epoch, with its dual round."""
        now = time.perf_counter()
        self.seconds, self._last = self.seconds + now - self._last, now

    def state_dict(self) -> dict[str, Any]:
        """Return the counts for the checkpoint."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts."""
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
