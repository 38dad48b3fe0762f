"""Measures pairs and tokens per second of a stage, and its peak memory."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from cdpo_lightning import ranks
from cdpo_lightning.training.data_modules.pair_data import PolicyBatch

_PROC = Path("/proc/self")  # on Linux only


class Speed(L.Callback):
    """Measures the time of the training steps, without that of the dual rounds; must come after the callback of the dual update.

    The peak memory covers steps and dual rounds, but not the time before the first step nor the copies for a checkpoint.
    """

    def __init__(self) -> None:
        self._pairs = self._tokens = self._peak = 0
        self._seconds, self._start = 0.0, 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Reset the peak memory."""
        reset_peak_memory()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Record the peak memory of the epoch."""
        self._peak = max(self._peak, peak_memory_bytes())

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the timer."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: PolicyBatch, batch_idx: int
    ) -> None:
        """Stop the timer; count pairs and tokens."""
        self._seconds += time.perf_counter() - self._start
        if batch.weight:  # a weight of 0 marks the placeholder batch of a rank without pairs
            self._pairs += len(batch.target)
            self._tokens += batch.rows.input_ids_BT.numel()

    def metrics(self) -> dict[str, float]:
        """Return `speed/*`: the sum over ranks of pairs and tokens per second, the largest peak in GB; empty without a step."""
        if not self._seconds:
            return {}
        return {
            "speed/pairs_per_second": sum(ranks.all_gather(self._pairs)) / self._seconds,
            "speed/tokens_per_second": sum(ranks.all_gather(self._tokens)) / self._seconds,
            "speed/peak_memory_gb": max(ranks.all_gather(self._peak)) / 1e9,
        }


def reset_peak_memory() -> None:
    """Reset the peak memory; on a system that cannot, `peak_memory_bytes` is that since the start of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif os.access(_PROC / "clear_refs", os.W_OK):
        (_PROC / "clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """Return the peak of the memory allocated on the GPU, or else of the resident memory, since `reset_peak_memory`; in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if (_PROC / "status").exists():
        lines = (_PROC / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
