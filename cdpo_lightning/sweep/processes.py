"""A job's processes: started as a group of their own, ended together, and recognised when an earlier sweep left them running."""

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

PATIENCE = ((signal.SIGINT, 20.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))  # seconds to end after each
# What a launcher that is itself a rank of something must not hand on: Lightning would take its jobs for ranks of the same thing.
_RANKS = ("LOCAL_RANK", "NODE_RANK", "GLOBAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Running:
    """A job that runs: its own process group, or one that an earlier sweep started and that is waited for.

    The lock file is held by the job's first process for as long as it lives, also when the sweep is killed: so no job runs twice.
    The file names the process, which leads the group.
    """

    def __init__(self, job: Job, process: subprocess.Popen[bytes] | None, lock: TextIO, slots: Sequence[str], offset: int) -> None:
        self.job, self.slots = job, tuple(slots)
        self.start = time.monotonic()
        self.adopted = process is None
        self._process, self._lock, self._offset = process, lock, offset
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status once it has ended: of a process that is not ours 0 if the run was finished, else 1."""
        if self._process is not None:
            return self._process.poll()
        if self._status is None and _take(self._lock):
            self._lock.close()
            self._status = 0 if self.job.done else 1
        return self._status

    def last_lines(self, count: int) -> tuple[str, ...]:
        """The last lines that are not empty, of those that this start of the job wrote."""
        return last_lines(self.job.log, count, self._offset)

    def signal(self, number: int) -> None:
        """Tells the whole group, the ranks of the job too."""
        if self.poll() is None:
            with suppress(ProcessLookupError, ValueError):
                os.killpg(self._process.pid if self._process else int(_lock_path(self.job).read_text()), number)


def last_lines(path: Path, count: int, offset: int = 0) -> tuple[str, ...]:
    """The last lines of a file that are not empty, at most so many; none without the file."""
    if not path.is_file():
        return ()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(offset, size - 8192))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return tuple(line.rstrip() for line in lines if line.strip())[-count:]


def _lock_path(job: Job) -> Path:
    return job.log.with_suffix(".lock")


def start(job: Job, slots: Sequence[str]) -> Running:
    """Starts the job on these devices, or finds that it runs already."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_path(job).open("a", encoding="utf-8")
    if not _take(lock):
        return Running(job, None, lock, slots, 0)
    with job.log.open("ab") as log:
        offset = log.tell()
        process = subprocess.Popen(
            [*job.command, *(["resume=true"] if job.begun else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(job.environment, slots),
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
    lock.truncate(0)
    lock.write(str(process.pid))
    lock.close()  # the job's own copy goes on holding it
    return Running(job, process, lock, slots, offset)


def end(running: Sequence[Running]) -> None:
    """Ends all of them: asks first, and kills only what does not end."""
    for number, seconds in PATIENCE:
        if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
            continue  # started in the background: the jobs ignore it as this process does
        for one in running:
            one.signal(number)
        until = time.monotonic() + seconds
        while any(one.poll() is None for one in running):
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        else:
            return


def _take(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _environment(changes: Mapping[str, str | None], slots: Sequence[str]) -> dict[str, str]:
    result: dict[str, str | None] = {**os.environ, "PYTHONUNBUFFERED": "1", **dict.fromkeys(_RANKS), **changes}
    if slots:
        result["CUDA_VISIBLE_DEVICES"] = ",".join(slots)
    return {name: value for name, value in result.items() if value is not None}
