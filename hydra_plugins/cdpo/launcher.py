"""Hydra's side of a sweep: from the overrides of each job to a process with a folder of its own.

Nothing heavy is imported here: Hydra reads this file whenever `run.py` is started.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from cdpo_lightning.config import RunConfig, cli_errors, parse
from cdpo_lightning.errors import ConfigError

if TYPE_CHECKING:
    from cdpo_lightning.sweep.jobs import Ended, Index, Job

_OURS = ("run_dir=", "resume=")  # the launcher's to set


class ProcessLauncher(Launcher):
    """`hydra/launcher=processes`: `jobs` processes at a time on `devices`."""

    def __init__(self, jobs: int, devices: Sequence[int | str]) -> None:
        self._places, self._devices = jobs, [str(name) for name in devices]
        self._index: Index | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the sweep."""
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all of them and returns their objectives, nan for those that failed."""
        from cdpo_lightning.sweep.devices import found_devices
        from cdpo_lightning.sweep.jobs import Index
        from cdpo_lightning.sweep.schedule import Schedule
        from cdpo_lightning.sweep.screen import summary

        if not isinstance(self._places, int) or self._places < 1:
            raise ConfigError(f"hydra.launcher.jobs={self._places}: expected a whole number, at least 1")
        setup_globals()
        folder = Path(str(self._config.hydra.sweep.dir))
        self._index = self._index or Index(folder)
        common = set.intersection(*(set(overrides) for overrides in job_overrides)) if len(job_overrides) > 1 else set()
        composed = [self._job(folder, list(overrides), initial_job_idx + at, common) for at, overrides in enumerate(job_overrides)]
        _require_own_folders([job for job, _ in composed])
        devices = self._devices or (found_devices() if any(job.devices for job, _ in composed) else [])
        again = _again(folder)
        try:
            ended = Schedule(folder, [job for job, _ in composed], self._index, self._places, devices).run()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: to go on: {again}") from None
        print("\n".join(summary(ended, folder, again)), flush=True)
        cli_errors.current().note_failures([one.status for one in ended])
        by_number = {one.job.number: one for one in ended}
        return [_returned(by_number[job.number], config) for job, config in composed]

    def _job(self, folder: Path, overrides: list[str], number: int, common: set[str]) -> tuple[Job, RunConfig | None]:
        from cdpo_lightning.sweep.jobs import Job, refused_identity

        assert self._index is not None
        shown = tuple(text for text in overrides if text not in common)
        try:
            identity = self._compose(overrides, number)[0].identity()
            number = self._index.number(identity)
            config, hydra, subdir = self._compose(overrides, number)
        except ConfigError as error:
            identity = refused_identity(tuple(overrides))
            number = self._index.number(identity)
            return Job(number, identity, shown, folder / str(number), _log(folder, number), refusal=str(error)), None
        requested = any(text.lstrip("+").startswith("run_dir=") for text in overrides)
        location = Path(config.run_dir) if requested else folder / subdir
        group = config.logger.group or folder.name
        watched = [f"logger.group={_quoted(group)}", f"logger.name={_quoted(' '.join(shown))}"]
        if config.logger.kind != "wandb":
            watched = []
        devices = 0 if config.trainer.accelerator == "cpu" else config.trainer.devices
        job = Job(
            number=number,
            identity=identity,
            overrides=shown,
            folder=location,
            log=_log(folder, number),
            command=(
                *_program(hydra),
                *_forwarded(hydra, overrides, number, folder),
                f"run_dir={_quoted(str(location))}",
                *watched,
            ),
            environment={
                **_threads(self._places * (1 if devices else config.trainer.processes)),
                **{k: str(v) for k, v in hydra.job.env_set.items()},
            },
            devices=devices,
        )
        return job, config

    def _compose(self, overrides: list[str], number: int) -> tuple[RunConfig, DictConfig, str]:
        """The job's configuration, Hydra's own part of it, and the name of the job's folder in the sweep's."""
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with read_write(config), open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        before = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)
            task = copy.deepcopy(config)
            with read_write(task), open_dict(task):
                del task["hydra"]
            return parse(task), config.hydra, str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before


def _log(folder: Path, number: int) -> Path:
    return folder / "logs" / f"{number}.txt"


def _program(hydra: DictConfig) -> list[str]:
    """Python, the script, and where its configuration was asked to come from."""
    requested = get_args_parser().parse_args(sys.argv[1:])
    options = {"--config-path": requested.config_path, "--config-name": requested.config_name, "--config-dir": requested.config_dir}
    message = [part for name, value in options.items() if value for part in (name, value)]
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *message]


def _forwarded(hydra: DictConfig, overrides: list[str], number: int, folder: Path) -> list[str]:
    """The job's overrides for a single run; Hydra's own only where the job would not be the same without them."""
    kept = [text for text in overrides if not text.lstrip("+").startswith(_OURS)]
    own = [str(text) for text in hydra.overrides.hydra]
    kept += [text for text in own if text.startswith("hydra.searchpath=")]
    if any(text.startswith(("+sweep=", "sweep=")) for text in overrides):
        kept.append("hydra.mode=RUN")
    if any("${hydra:" in text for text in kept):
        kept += [f"hydra.job.num={number}", f"hydra.job.id={number}", f"hydra.sweep.dir={_quoted(str(folder))}"]
    return kept


def _quoted(value: str) -> str:
    """The text as a value of Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # a backslash counts only before a quote, and the last one is before ours
    escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
    return value if re.fullmatch(r"[\w./-]+", value, re.ASCII) else f"'{escaped}'"


def _threads(processes: int) -> dict[str, str | None]:
    """Processes that run side by side share the cores, unless the user said otherwise."""
    if processes == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}


def _again(folder: Path) -> str:
    """The command that goes on with this sweep."""
    own = [text for text in sys.argv[1:] if not text.startswith("hydra.sweep.dir=")]
    return shlex.join(["python", Path(sys.argv[0]).name, *own, f"hydra.sweep.dir={folder}"])


def _require_own_folders(jobs: Sequence[Job]) -> None:
    """Raises:
    ConfigError: two jobs would write to one folder.
    """
    seen: dict[Path, Job] = {}
    for job in jobs:
        if other := seen.get(job.folder.resolve()):
            raise ConfigError(
                f"run_dir={job.folder}: {other.name} and {job.name} would both write there; leave run_dir out, or put "
                "${hydra:job.num} into it"
            )
        seen[job.folder.resolve()] = job


def _returned(ended: Ended, config: RunConfig | None) -> JobReturn:
    """What Hydra's sweepers are given."""
    from cdpo_lightning.report.load import load_metrics
    from cdpo_lightning.sweep.objective import objective

    value: float | None = float("nan")
    if ended.status == 0 and config is not None and ended.job.done:
        value = objective(config, load_metrics(ended.job.folder))
    made = JobReturn(overrides=list(ended.job.overrides), working_dir=str(ended.job.folder), status=JobStatus.COMPLETED)
    made.return_value = value
    return made
