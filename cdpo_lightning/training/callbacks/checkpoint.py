"""Checkpoints of a stage: after every epoch, every so many steps, and when the process is told to end."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from cdpo_lightning import ranks
from cdpo_lightning.data.batching import ResumableLoader
from cdpo_lightning.store.files import remove_old_versions, rotate_versions
from cdpo_lightning.store.history import History


class Checkpoints(Checkpoint):
    """`last.ckpt` in the stage's folder, written last of all callbacks; the versions before it as `last-1.ckpt` and so on.

    Lightning's own ModelCheckpoint writes one when the training ends, and after an epoch only beside a checkpoint that it keeps.
    SIGTERM, which a cluster sends before it takes a machine away, is answered at the end of the step: a whole checkpoint, then
    KeyboardInterrupt, on all ranks when one of them was told.
    """

    def __init__(self, folder: Path, history: History, every_n_steps: int, keep: int) -> None:
        self._path, self._history, self._every, self._keep = folder / "last.ckpt", history, every_n_steps, keep
        self._told = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signal over from Lightning, which would end between two checkpoints."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self._told = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Between two steps of an epoch that can go on from there; its last step is followed by the end of the epoch."""
        if trainer.is_last_batch or trainer.fit_loop._should_accumulate():
            return
        if not isinstance(trainer.train_dataloader, ResumableLoader):  # PPO's batches are of samples that this epoch has drawn
            return
        told = ranks.any_rank(self._told)
        if told or (self._every and trainer.global_step % self._every == 0):
            self._history.write()
            self._save(trainer)
        if told:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Weights, optimizer, schedule, loops, callbacks and the data module's state."""
        self._save(trainer)
        if ranks.any_rank(self._told):
            raise KeyboardInterrupt

    def _save(self, trainer: L.Trainer) -> None:
        if self._keep > 1 and ranks.is_first() and self._path.is_file():  # a folder makes room for itself
            rotate_versions(self._path)
        trainer.save_checkpoint(self._path)
        if ranks.is_first():
            remove_old_versions(self._path, self._keep)
