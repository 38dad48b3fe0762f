"""Pairs and tokens per second of a stage, and the process's peak memory."""

from __future__ import annotations

import resource
import time
from typing import Any

import lightning as L
import torch

from cdpo_lightning import ranks
from cdpo_lightning.data.pair_data import PolicyBatch


class Speed(L.Callback):
    """Counts the time of the training steps only, not that of the dual rounds."""

    def __init__(self) -> None:
        self._pairs = self._tokens = 0
        self._seconds, self._start = 0.0, 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: PolicyBatch, batch_idx: int
    ) -> None:
        """Stops the clock and counts."""
        self._seconds += time.perf_counter() - self._start
        if batch.weight:  # else it stands in for a share that is empty
            self._pairs += len(batch.target)
            self._tokens += batch.rows.input_ids_BT.numel()

    def metrics(self) -> dict[str, float]:
        """`speed/*` of all ranks together, the peak that of the fullest; nothing if no step was taken."""
        if not self._seconds:
            return {}
        on_gpu = torch.cuda.is_available()
        peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "speed/pairs_per_second": sum(ranks.gathered(self._pairs)) / self._seconds,
            "speed/tokens_per_second": sum(ranks.gathered(self._tokens)) / self._seconds,
            "speed/peak_memory_gb": max(ranks.gathered(peak)) / 1e9,
        }
