"""What training took: tokens read with a gradient, and seconds."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class ComputeMeter(L.Callback):
    """Counts over the whole stage, what an interrupted run did before it went on included; stands last of the callbacks."""

    def __init__(self) -> None:
        self.tokens, self.seconds, self._last = 0, 0.0, 0.0

    def on_train_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the tokens of the batch, padding left out."""
        self.tokens += batch.trained_tokens

    def on_train_epoch_end(self, *_: Any) -> None:
        """The epoch's seconds, its dual round included."""
        now = time.perf_counter()
        self.seconds, self._last = self.seconds + now - self._last, now

    def state_dict(self) -> dict[str, Any]:
        """The counts, for the checkpoint."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the counts."""
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
