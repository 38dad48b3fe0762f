"""The Lightning loggers that a run can use in addition to its history.csv."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from cdpo_lightning.config import LoggerConfig
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.training.callbacks import wandb_run


class JobWandbLogger(WandbLogger):
    """Logs to the W&B run of the job, with a slash between prefix and metric: the curves of a baseline are named `dpo/loss`."""

    LOGGER_JOIN_CHAR = "/"


def make_logger(config: LoggerConfig, folder: Path, who: str, baseline: bool) -> Logger | bool:
    """Return the Lightning logger of a policy, which logs in addition to history.csv, or False. The W&B run must be open."""
    if config.kind == "csv":
        return CSVLogger(folder, name="csv", version=who)
    if config.kind == "tensorboard":
        return TensorBoardLogger(folder, name="tensorboard", version=who)
    if config.kind == "wandb":
        return JobWandbLogger(experiment=wandb_run.current_run(), prefix=who if baseline else "", save_dir=str(folder))
    return False


def require_logger(config: LoggerConfig) -> None:
    """Raise an error unless the logger can be used.

    Raises:
        ConfigError: the logger's package is not installed.
    """
    if config.kind == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise ConfigError("logger.kind=tensorboard: that package is not installed; try: pip install tensorboard")
