"""Runs the jobs of a sweep, up to `max_parallel` at a time, each as soon as its devices are free. A failure stops no other job."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cdpo_lightning.sweep.devices import DevicePool
from cdpo_lightning.sweep.jobs import Job, JobIndex, JobResult
from cdpo_lightning.sweep.page import LivePage
from cdpo_lightning.sweep.processes import RunningJob, start_job, stop_jobs
from cdpo_lightning.sweep.screen import SweepScreen

LAST_LINES = 5  # lines of the log to show of a failed job
_POLL_INTERVAL = 0.1  # seconds


class Schedule:
    """Runs the jobs of one launch."""

    def __init__(self, folder: Path, jobs: Sequence[Job], index: JobIndex, max_parallel: int, devices: Sequence[str]) -> None:
        self._index, self._max_parallel, self._devices = index, max_parallel, DevicePool(devices)
        self._waiting = deque(jobs)
        self._running: list[RunningJob] = []
        self.results: dict[int, JobResult] = {}
        self._screen, self._page = SweepScreen(folder, len(jobs), max_parallel), LivePage(folder)

    def run(self) -> list[JobResult]:
        """Run all jobs; return their results, ordered by number.

        Raises:
            KeyboardInterrupt: the sweep was interrupted, and has stopped its jobs.
        """
        self._remove_ended()
        with _sigterm_as_interrupt(), self._screen:
            try:
                while self._waiting or self._running:
                    self._start_jobs()
                    self._collect()
                    self._screen.show_state(self._running, list(self.results.values()))
                    if self._running:
                        time.sleep(_POLL_INTERVAL)
            finally:
                stop_jobs(self._running)
                for running in self._running:
                    self._index.set_state(running.job, "waiting")
                self._index.write()
        self._page.write(final=True)
        return [self.results[number] for number in sorted(self.results)]

    def _remove_ended(self) -> None:
        """Take the jobs that are done already, and those with an error in their configuration, out of the queue."""
        for job in list(self._waiting):
            if job.refusal:
                self._waiting.remove(job)
                self._end(JobResult(job, 2, last_lines=(f"error: {job.refusal}",)))
            elif job.done:
                self._waiting.remove(job)
                self._end(JobResult(job, 0, skipped=True))
            else:
                self._index.set_state(job, "waiting")
        self._index.write()

    def _start_jobs(self) -> None:
        """Start as many jobs as can run; a job that waits for many devices does not hold up a smaller one."""
        for job in list(self._waiting):
            if len(self._running) >= self._max_parallel:
                return
            devices = self._devices.acquire(min(job.devices, self._devices.size))
            if devices is not None:
                self._waiting.remove(job)
                self._running.append(start_job(job, devices))
                self._index.set_state(job, "running")
                self._index.write()

    def _collect(self) -> None:
        """Record the jobs that have ended. An adopted job that did not complete is queued again."""
        for running in list(self._running):
            if (status := running.poll()) is None:
                continue
            self._running.remove(running)
            self._devices.release(running.devices)
            if running.adopted and status:
                self._waiting.appendleft(running.job)
            else:
                lines = running.last_lines(LAST_LINES) if status else ()
                self._end(JobResult(running.job, status, time.monotonic() - running.start, lines))

    def _end(self, result: JobResult) -> None:
        self.results[result.job.number] = result
        facts = {"status": result.status, "seconds": round(result.seconds, 1), "message": list(result.last_lines)}
        if not result.skipped:
            self._index.set_state(result.job, "failed" if result.status else "done", **facts)
        self._index.write()
        self._screen.show_result(result)
        self._page.write()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM too, so that the jobs are stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
