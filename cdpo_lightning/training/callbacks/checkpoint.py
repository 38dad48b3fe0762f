"""Writes the checkpoints of a stage: after every epoch, every N steps, and on SIGTERM."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from cdpo_lightning import compat, ranks
from cdpo_lightning.data.batching import ResumableLoader
from cdpo_lightning.store.files import remove_old_versions, rotate_versions
from cdpo_lightning.store.history import History


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` to the stage's folder; older versions become `last-1.ckpt` and so on. Must be the last callback.

    Lightning's ModelCheckpoint does not serve: with `save_last` it writes after an epoch only if it also keeps another checkpoint.
    A cluster sends SIGTERM before it takes a machine away. At the end of the step all ranks then write a checkpoint together and
    raise KeyboardInterrupt, also if only one of them got the signal.
    """

    def __init__(self, folder: Path, history: History, every_n_steps: int, keep: int) -> None:
        self._path, self._history, self._every, self._keep = folder / "last.ckpt", history, every_n_steps, keep
        self._sigterm_received = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace Lightning's handler of SIGTERM, which exits without a checkpoint."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        self._sigterm_received = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write a checkpoint if it is due, except after the last step of an epoch, which `on_train_epoch_end` handles."""
        if trainer.is_last_batch or compat.accumulates_gradients(trainer):
            return
        # PPO cannot resume within an epoch: it draws new samples for each.
        if not isinstance(trainer.train_dataloader, ResumableLoader):
            return
        stop = ranks.any_rank(self._sigterm_received)
        if stop or (self._every and trainer.global_step % self._every == 0):
            self._history.write()
            self._save(trainer)
        if stop:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a checkpoint; stop if a rank got SIGTERM."""
        self._save(trainer)
        if ranks.any_rank(self._sigterm_received):
            raise KeyboardInterrupt

    def _save(self, trainer: L.Trainer) -> None:
        if self._keep > 1 and ranks.is_first() and self._path.is_file():  # atomic_folder rotates the versions of a folder itself
            rotate_versions(self._path)
        trainer.save_checkpoint(self._path)
        if ranks.is_first():
            remove_old_versions(self._path, self._keep)
