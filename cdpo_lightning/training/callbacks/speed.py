"""Pairs and tokens per second of a stage, and the peak memory of its epochs."""

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

_OWN = Path("/proc/self")  # of Linux


class Speed(L.Callback):
    """Counts the time of the training steps only, not that of the dual rounds; stands behind the callback of those.

    The peak of memory is that of steps and rounds: what goes before the first step and what is copied to write a checkpoint does
    not count.
    """

    def __init__(self) -> None:
        self._pairs = self._tokens = self._peak = 0
        self._seconds, self._start = 0.0, 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Forgets the peak so far."""
        forget_peak()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Notes the epoch's peak."""
        self._peak = max(self._peak, peak_bytes())

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
        return {
            "speed/pairs_per_second": sum(ranks.all_gather(self._pairs)) / self._seconds,
            "speed/tokens_per_second": sum(ranks.all_gather(self._tokens)) / self._seconds,
            "speed/peak_memory_gb": max(ranks.all_gather(self._peak)) / 1e9,
        }


def forget_peak() -> None:
    """Begins the measurement of `peak_bytes` anew; where the system has no such thing, it goes on from the start of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif os.access(_OWN / "clear_refs", os.W_OK):
        (_OWN / "clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The most that the GPU's allocator held, or that was resident of this process, since `forget_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if (_OWN / "status").exists():
        lines = (_OWN / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
