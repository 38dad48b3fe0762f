"""The Hydra launcher of sweeps: turns the overrides of each job into a command line and a folder, and runs the jobs as processes.

Hydra imports this file whenever `run.py` starts, so slow imports are inside the functions.
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

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from cdpo_lightning.compat import parse_hydra_arguments
from cdpo_lightning.config import RunConfig, cli_errors, parse
from cdpo_lightning.errors import ConfigError

if TYPE_CHECKING:
    from cdpo_lightning.sweep.jobs import Job, JobIndex, JobResult

_SET_BY_LAUNCHER = ("run_dir=", "resume=")


class ProcessLauncher(Launcher):
    """`hydra/launcher=processes`: runs up to `jobs` jobs at a time, on `devices`."""

    def __init__(self, jobs: int, devices: Sequence[int | str]) -> None:
        self._max_parallel, self._devices = jobs, [str(name) for name in devices]
        self._index: JobIndex | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes before the sweep."""
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; return their objectives, nan for a job that failed.

        Raises:
            ConfigError: `hydra.launcher.jobs` is not a positive whole number, or two jobs have the same folder.
        """
        from cdpo_lightning.sweep.devices import visible_devices
        from cdpo_lightning.sweep.jobs import JobIndex
        from cdpo_lightning.sweep.schedule import Schedule
        from cdpo_lightning.sweep.screen import summary

        if not isinstance(self._max_parallel, int) or self._max_parallel < 1:
            raise ConfigError(f"hydra.launcher.jobs={self._max_parallel}: expected a whole number, at least 1")
        setup_globals()
        folder = Path(str(self._config.hydra.sweep.dir))
        self._index = self._index or JobIndex(folder)
        common = set.intersection(*(set(overrides) for overrides in job_overrides)) if len(job_overrides) > 1 else set()
        jobs = [self._job(folder, list(overrides), initial_job_idx + n, common) for n, overrides in enumerate(job_overrides)]
        _require_own_folders([job for job, _ in jobs])
        devices = self._devices or (visible_devices() if any(job.devices for job, _ in jobs) else [])
        command = _resume_command(folder)
        try:
            results = Schedule(folder, [job for job, _ in jobs], self._index, self._max_parallel, devices).run()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: to continue: {command}") from None
        print("\n".join(summary(results, folder, command)), flush=True)
        cli_errors.current().note_failures([result.status for result in results])
        by_number = {result.job.number: result for result in results}
        return [_job_return(by_number[job.number], config) for job, config in jobs]

    def _job(self, folder: Path, overrides: list[str], number: int, common: set[str]) -> tuple[Job, RunConfig | None]:
        """Return the job and its configuration; if that is in error, a job that holds the error, and None."""
        from cdpo_lightning.sweep.jobs import Job, refused_identity

        assert self._index is not None
        own = tuple(text for text in overrides if text not in common)
        try:
            identity = self._compose(overrides, number)[0].identity()
            number = self._index.number(identity)
            config, hydra, subdir = self._compose(overrides, number)
        except ConfigError as error:
            identity = refused_identity(tuple(overrides))
            number = self._index.number(identity)
            return Job(number, identity, own, folder / str(number), _log(folder, number), refusal=str(error)), None
        devices = 0 if config.trainer.accelerator == "cpu" else config.trainer.devices
        environment = _threads(self._max_parallel * (1 if devices else config.trainer.processes))
        environment |= {name: str(value) for name, value in hydra.job.env_set.items()}
        has_run_dir = any(text.lstrip("+").startswith("run_dir=") for text in overrides)
        run_dir = Path(config.run_dir) if has_run_dir else folder / subdir
        command = [*_program(), *_forwarded(hydra, overrides, number, folder), f"run_dir={_quoted(str(run_dir))}"]
        if config.logger.kind == "wandb":
            command.append(f"logger.group={_quoted(config.logger.group or folder.name)}")
            command.append(f"logger.name={_quoted(' '.join(own))}")
        job = Job(
            number=number,
            identity=identity,
            overrides=own,
            folder=run_dir,
            log=_log(folder, number),
            command=tuple(command),
            environment=environment,
            devices=devices,
        )
        return job, config

    def _compose(self, overrides: list[str], number: int) -> tuple[RunConfig, DictConfig, str]:
        """Return the configuration of a job, its section `hydra`, and the name of its folder in the folder of the sweep."""
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with read_write(config), open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        previous = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)
            task = copy.deepcopy(config)
            with read_write(task), open_dict(task):
                del task["hydra"]
            return parse(task), config.hydra, str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = previous


def _log(folder: Path, number: int) -> Path:
    return folder / "logs" / f"{number}.txt"


def _program() -> list[str]:
    """Return the command line of this program before its overrides: Python, the script, and Hydra's `--config-*` options."""
    args = parse_hydra_arguments(sys.argv[1:])
    options = {"--config-path": args.config_path, "--config-name": args.config_name, "--config-dir": args.config_dir}
    given = [part for name, value in options.items() if value for part in (name, value)]
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *given]


def _forwarded(hydra: DictConfig, overrides: list[str], number: int, folder: Path) -> list[str]:
    """Return the overrides for a single run of the job; of Hydra's own keys only those that the job's configuration depends on."""
    kept = [text for text in overrides if not text.lstrip("+").startswith(_SET_BY_LAUNCHER)]
    own = [str(text) for text in hydra.overrides.hydra]
    kept += [text for text in own if text.startswith("hydra.searchpath=")]
    if any(text.startswith(("+sweep=", "sweep=")) for text in overrides):
        kept.append("hydra.mode=RUN")
    if any("${hydra:" in text for text in kept):
        kept += [f"hydra.job.num={number}", f"hydra.job.id={number}", f"hydra.sweep.dir={_quoted(str(folder))}"]
    return kept


def _quoted(value: str) -> str:
    """Return the text quoted as a value in Hydra's override grammar."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # a backslash escapes only before a quote, so at the end too
    escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
    return value if re.fullmatch(r"[\w./-]+", value, re.ASCII) else f"'{escaped}'"


def _threads(processes: int) -> dict[str, str | None]:
    """Return `OMP_NUM_THREADS` that divides the cores among parallel processes, unless the user has set it."""
    if processes == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}


def _resume_command(folder: Path) -> str:
    """Return the command that continues this sweep."""
    own = [text for text in sys.argv[1:] if not text.startswith("hydra.sweep.dir=")]
    return shlex.join(["python", Path(sys.argv[0]).name, *own, f"hydra.sweep.dir={folder}"])


def _require_own_folders(jobs: Sequence[Job]) -> None:
    """Raise an error unless every job has a folder of its own.

    Raises:
        ConfigError: two jobs have the same folder.
    """
    seen: dict[Path, Job] = {}
    for job in jobs:
        if other := seen.get(job.folder.resolve()):
            raise ConfigError(
                f"run_dir={job.folder}: {other.name} and {job.name} would both write there; leave run_dir out, or put "
                "${hydra:job.num} into it"
            )
        seen[job.folder.resolve()] = job


def _job_return(result: JobResult, config: RunConfig | None) -> JobReturn:
    """Return the result of a job as Hydra's sweepers expect it."""
    from cdpo_lightning.report.load import load_metrics
    from cdpo_lightning.sweep.objective import objective

    value: float | None = float("nan")
    if result.status == 0 and config is not None and result.job.done:
        value = objective(config, load_metrics(result.job.folder))
    job_return = JobReturn(overrides=list(result.job.overrides), working_dir=str(result.job.folder), status=JobStatus.COMPLETED)
    job_return.return_value = value
    return job_return
