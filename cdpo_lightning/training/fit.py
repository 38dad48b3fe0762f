"""Fit one stage with Lightning: create the trainer, resume from the last checkpoint, turn an interrupt into KeyboardInterrupt."""

from __future__ import annotations

import io
import logging
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cdpo_lightning import ranks
from cdpo_lightning.config import TrainerConfig
from cdpo_lightning.errors import ConfigError, StorageError
from cdpo_lightning.models.lm.layers import compiled
from cdpo_lightning.store.files import atomic_file, newest_version
from cdpo_lightning.store.history import History
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.training.callbacks.checkpoint import Checkpoints
from cdpo_lightning.training.callbacks.history import HistoryCallback
from cdpo_lightning.training.strategies import hardware_arguments

_QUIET_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
_IGNORED_WARNINGS = (  # of Lightning: the cause is intended, or cannot be changed here
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*`srun` command is available on your system but is not used.*",  # checked at every fit, with any cluster environment
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
)


@dataclass(frozen=True)
class FitStage:
    """The settings of one stage.

    Attributes:
        name: `sft`, `reward`, `cost` or `policy`, which is also the section of the configuration.
        epochs: how many to train.
        folder: where the checkpoints are kept.
        who: the method whose policy is trained; empty for other stages.
        gradient_clip: the largest norm of the gradient.
    """

    name: str
    epochs: int
    folder: Path
    who: str = ""
    gradient_clip: float = 1.0


@dataclass(frozen=True)
class FitSettings:
    """The settings that all stages of a run share.

    Attributes:
        trainer: the section `trainer` of the configuration.
        history: gets a row per logged step.
        folder: of the checkpoints of all stages.
        seed: of the run.
        compile: compile the layers with torch.compile during the fit.
        progress: show Lightning's progress bar.
        logger_for: returns the Lightning logger of a policy, by its name.
    """

    trainer: TrainerConfig
    history: History
    folder: Path
    seed: int
    compile: bool = False
    progress: bool = False
    logger_for: Callable[[str], Logger | bool] = lambda who: False


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint atomically. Lightning's own writer is not atomic if the folder of temporary files is on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write to a temporary name in the same folder, then rename."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomic_file(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def require_hardware(config: TrainerConfig) -> None:
    """Raise an error unless Lightning accepts the settings of `trainer` on this machine.

    Raises:
        ConfigError: the devices do not exist, or settings exclude each other.
    """
    _new_trainer(config, logger=False, enable_checkpointing=False)


def optimizer_steps(batches: int, epochs: int, accumulate: int) -> int:
    """Return the optimizer steps of a stage: every epoch ends with one, however many batches are accumulated."""
    return epochs * -(-batches // accumulate)


def fit(
    module: L.LightningModule,
    data: L.LightningDataModule,
    stage: FitStage,
    settings: FitSettings,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    """Train `module` to the end of the stage, from the stage's last checkpoint if there is one; return the trainer.

    A checkpoint is written atomically after each epoch and every `trainer.checkpoint_every_n_steps` steps. It holds weights,
    optimizer, schedule and the state of the data module: a run that is killed and resumed ends with the same numbers.

    Raises:
        ConfigError: Lightning refuses the settings of `trainer`.
        StorageError: the checkpoint is damaged, or was written by another kind of strategy.
        KeyboardInterrupt: the process got SIGINT or SIGTERM.
    """
    trainer, history = settings.trainer, settings.history
    torch.manual_seed(stream_seed(settings.seed, Stream.TRAINING))
    checkpoints = Checkpoints(stage.folder, history, trainer.checkpoint_every_n_steps, trainer.keep_checkpoints)
    with quiet_lightning():
        lightning_trainer = _new_trainer(
            trainer,
            max_epochs=stage.epochs,
            gradient_clip_val=stage.gradient_clip,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            # The history comes after the callbacks that log, and before the checkpoint, which must not be newer than the history.
            callbacks=[*callbacks, HistoryCallback(history, stage.name, stage.who), checkpoints],
            logger=settings.logger_for(stage.who) if stage.who and ranks.is_first() else False,
            log_every_n_steps=trainer.log_every_n_steps,
            num_sanity_val_steps=0,
            enable_progress_bar=settings.progress,
            enable_model_summary=False,
            default_root_dir=str(stage.folder),
        )
        module.train()
        checkpoint = _last_checkpoint(stage.folder, trainer)
        with _interruptible(lightning_trainer), compiled(module, settings.compile, lightning_trainer.strategy.root_device):
            lightning_trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    module.eval()
    return lightning_trainer


def _new_trainer(config: TrainerConfig, **options: Any) -> L.Trainer:
    try:
        with quiet_lightning():
            return L.Trainer(**hardware_arguments(config, AtomicCheckpointIO()), **options)
    except (MisconfigurationException, ValueError) as error:
        keys = ("accelerator", "devices", "num_nodes", "precision", "strategy")
        requested = ", ".join(f"trainer.{key}={getattr(config, key)}" for key in keys)
        raise ConfigError(f"{requested}: {error}") from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's log messages and the warnings in `_IGNORED_WARNINGS`."""
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in _IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def _last_checkpoint(folder: Path, trainer: TrainerConfig) -> str | None:
    """Return the path of the newest checkpoint of a stage, or None. It is a file, or a folder of shards under DeepSpeed."""
    last = newest_version(folder / "last.ckpt")
    if last is None:
        return None
    if last.is_dir() != bool(trainer.zero):
        raise StorageError(
            f"{last}: not written by trainer.strategy={trainer.strategy}; resume with the strategy of the first start"
        )
    if last.is_file() and not zipfile.is_zipfile(last):
        raise StorageError(f"{last}: truncated or altered; remove it and add resume=true, the stage then starts again")
    return str(last)


@contextmanager
def _interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning, when interrupted, exits the process or fails.

    Lightning exits with status 1, after SIGTERM with status 0. It fails with a RuntimeError if the interrupt comes between two
    epochs, because there is no iterator to close then.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (RuntimeError, SystemExit) as error:
        exited = trainer.interrupted and isinstance(error, SystemExit)
        if not exited and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
