"""Starts, watches and stops the processes of jobs, one process group each; adopts jobs that a killed sweep left running.

The locks are plain `flock`, not filelock: the process of the job inherits the locked file, and keeps the lock if the sweep ends.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from cdpo_lightning.sweep.jobs import Job

STOP_SIGNALS = ((signal.SIGINT, 20.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))  # seconds to wait after each
# Removed from the environment of jobs: if the sweep itself runs under torchrun, its jobs are not ranks of that.
_RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "GLOBAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RunningJob:
    """A running job: a process group that this sweep has started, or one that an earlier sweep left running (`adopted`).

    The first process of the job holds a lock on a file for as long as it lives, also if the sweep is killed: so no job runs twice.
    The file holds the id of that process, which is also the id of the process group.
    """

    def __init__(
        self, job: Job, process: subprocess.Popen[bytes] | None, lock: TextIO, devices: Sequence[str], offset: int
    ) -> None:
        self.job, self.devices = job, tuple(devices)
        self.start = time.monotonic()
        self.adopted = process is None
        self._process, self._lock, self._offset = process, lock, offset
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while the job runs. For an adopted job: 0 if its run is complete, else 1."""
        if self._process is not None:
            return self._process.poll()
        if self._status is None and _try_lock(self._lock):
            self._lock.close()
            self._status = 0 if self.job.done else 1
        return self._status

    def last_lines(self, count: int) -> tuple[str, ...]:
        """Return the last non-empty lines that the job has logged since this start."""
        return last_lines(self.job.log, count, self._offset)

    def signal(self, number: int) -> None:
        """Send a signal to the process group, which includes the ranks of the job."""
        if self.poll() is None:
            with suppress(ProcessLookupError, ValueError):
                os.killpg(self._process.pid if self._process else int(_lock_path(self.job).read_text()), number)


def last_lines(path: Path, count: int, offset: int = 0) -> tuple[str, ...]:
    """Return the last non-empty lines of a file, at most `count`, searched after byte `offset`; none if there is no file."""
    if not path.is_file():
        return ()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(offset, size - 8192))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return tuple(line.rstrip() for line in lines if line.strip())[-count:]


def _lock_path(job: Job) -> Path:
    return job.log.with_suffix(".lock")


def start_job(job: Job, devices: Sequence[str]) -> RunningJob:
    """Start the job on these devices, or adopt it if it is already running."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_path(job).open("a", encoding="utf-8")
    if not _try_lock(lock):
        return RunningJob(job, None, lock, devices, 0)
    with job.log.open("ab") as log:
        offset = log.tell()
        process = subprocess.Popen(
            [*job.command, *(["resume=true"] if job.begun else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(job.environment, devices),
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
    lock.truncate(0)
    lock.write(str(process.pid))
    lock.close()  # the job keeps the lock: it has inherited the file
    return RunningJob(job, process, lock, devices, offset)


def stop_jobs(running: Sequence[RunningJob]) -> None:
    """Stop all jobs: interrupt first, and kill only those that do not end in time."""
    for number, seconds in STOP_SIGNALS:
        if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
            continue  # as in a background process: its jobs inherit that and ignore SIGINT too
        for job in running:
            job.signal(number)
        deadline = time.monotonic() + seconds
        while any(job.poll() is None for job in running):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return


def _try_lock(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _environment(changes: Mapping[str, str | None], devices: Sequence[str]) -> dict[str, str]:
    result: dict[str, str | None] = {**os.environ, "PYTHONUNBUFFERED": "1", **dict.fromkeys(_RANK_VARIABLES), **changes}
    if devices:
        result["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return {name: value for name, value in result.items() if value is not None}
