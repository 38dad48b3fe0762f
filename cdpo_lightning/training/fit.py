"""Fits one stage with Lightning: the trainer, its checkpoint after every epoch, and how it goes on after a kill."""

from __future__ import annotations

import io
import logging
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cdpo_lightning import ranks
from cdpo_lightning.config import LoggerConfig, TrainerConfig
from cdpo_lightning.errors import ConfigError, StorageError
from cdpo_lightning.models.lm.layers import compiled
from cdpo_lightning.store.files import atomic_file, newest_version
from cdpo_lightning.store.history import History
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.training.callbacks import wandb_run
from cdpo_lightning.training.callbacks.checkpoint import Checkpoints
from cdpo_lightning.training.callbacks.history import HistoryCallback
from cdpo_lightning.training.strategies import hardware

_QUIET = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
_NOISE = (  # what Lightning warns of and what is so on purpose, or not ours to change
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
)


@dataclass(frozen=True)
class Stage:
    """One call of `fit`: its name, whose policy it trains (if any), how long, and where its checkpoint is kept."""

    name: str
    epochs: int
    folder: Path
    who: str = ""
    gradient_clip: float = 1.0


@dataclass(frozen=True)
class FitSettings:
    """How every stage of a run is trained."""

    trainer: TrainerConfig
    history: History
    folder: Path  # of the checkpoints
    seed: int
    compile: bool = False  # the layers, for the time of the fit
    progress: bool = False  # show Lightning's bar
    logger_for: Callable[[str], Logger | bool] = lambda who: False  # Lightning's logger of a policy, by its name


class WholeCheckpoint(TorchCheckpointIO):
    """A checkpoint is there whole or not at all, also where the folder of temporary files is on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes it beside its place and then moves it there."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomic_file(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())


class JobWandbLogger(WandbLogger):
    """Logs a policy into the one W&B run of its job; a baseline's curves have its name in front."""

    LOGGER_JOIN_CHAR = "/"


def make_logger(config: LoggerConfig, folder: Path, who: str, baseline: bool) -> Logger | bool:
    """The Lightning logger of a policy beside history.csv; W&B's is into the job's run, which is open already."""
    if config.kind == "csv":
        return CSVLogger(folder, name="csv", version=who)
    if config.kind == "tensorboard":
        return TensorBoardLogger(folder, name="tensorboard", version=who)
    if config.kind == "wandb":
        return JobWandbLogger(experiment=wandb_run.current(), prefix=who if baseline else "", save_dir=str(folder))
    return False


def require_logger(config: LoggerConfig) -> None:
    """Raises:
    ConfigError: the logger's package is not installed.
    """
    if config.kind == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise ConfigError("logger.kind=tensorboard: that package is not installed; try: pip install tensorboard")


def require_hardware(config: TrainerConfig) -> None:
    """Raises:
    ConfigError: what `trainer` asks for is not there, or does not go together.
    """
    _new_trainer(config, logger=False, enable_checkpointing=False)


def optimizer_steps(batches: int, epochs: int, accumulate: int) -> int:
    """Return the optimizer steps of a stage: every epoch ends with one, however many batches are accumulated."""
    return epochs * -(-batches // accumulate)


def fit(
    module: L.LightningModule,
    data: L.LightningDataModule,
    stage: Stage,
    settings: FitSettings,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    """Trains `module` to the end of the stage, from the stage's checkpoint if there is one; the trainer it used.

    The checkpoint is written whole after each epoch, and every `trainer.checkpoint_every_n_steps`; it holds weights, optimizer,
    schedule and the data module's state, so a run killed at any moment repeats what came after it and loses none of its numbers.
    """
    trainer, history = settings.trainer, settings.history
    torch.manual_seed(stream_seed(settings.seed, Stream.TRAINING))
    checkpoints = Checkpoints(stage.folder, history, trainer.checkpoint_every_n_steps, trainer.keep_checkpoints)
    with _quiet():
        made = _new_trainer(
            trainer,
            max_epochs=stage.epochs,
            gradient_clip_val=stage.gradient_clip,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            # The history is written after the others have logged and before the checkpoint: it never lacks a row of it.
            callbacks=[*callbacks, HistoryCallback(history, stage.name, stage.who), checkpoints],
            logger=settings.logger_for(stage.who) if stage.who and ranks.is_first() else False,
            log_every_n_steps=trainer.log_every_n_steps,
            num_sanity_val_steps=0,
            enable_progress_bar=settings.progress,
            enable_model_summary=False,
            default_root_dir=str(stage.folder),
        )
        module.train()
        with _interruptible(made), compiled(module, settings.compile, made.strategy.root_device):
            made.fit(module, datamodule=data, ckpt_path=_last(stage.folder, trainer), weights_only=True)
    module.eval()
    return made


def _new_trainer(config: TrainerConfig, **options: Any) -> L.Trainer:
    try:
        with _quiet():
            return L.Trainer(**hardware(config, WholeCheckpoint()), **options)
    except (MisconfigurationException, ValueError) as error:
        keys = ("accelerator", "devices", "num_nodes", "precision", "strategy")
        requested = ", ".join(f"trainer.{key}={getattr(config, key)}" for key in keys)
        raise ConfigError(f"{requested}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notes and the warnings that say nothing here."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        yield


def _last(folder: Path, trainer: TrainerConfig) -> str | None:
    """The stage's newest checkpoint, if there is one: a file, or a folder where the training is sharded."""
    last = newest_version(folder / "last.ckpt")
    if last is None:
        return None
    if last.is_dir() != bool(trainer.zero):
        raise StorageError(f"{last}: not of trainer.strategy={trainer.strategy}; resume with the strategy that it was begun with")
    if last.is_file() and not zipfile.is_zipfile(last):
        raise StorageError(f"{last}: cut or altered; remove it and add resume=true: its stage begins anew")
    return str(last)


@contextmanager
def _interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Interrupted, Lightning ends the process with status 1 or (by SIGTERM) 0, or fails to; here it is a KeyboardInterrupt.

    It fails (a RuntimeError) where the interrupt comes between two epochs, when there is no iterator that it could end.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (RuntimeError, SystemExit) as error:
        ended = trainer.interrupted and isinstance(error, SystemExit)
        if not ended and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
