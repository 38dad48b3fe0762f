"""Runs a sweep's jobs: so many at a time, each as soon as a place and its devices are free; one that fails stops no other."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cdpo_lightning.sweep.devices import Pool
from cdpo_lightning.sweep.jobs import Ended, Index, Job
from cdpo_lightning.sweep.page import LivePage
from cdpo_lightning.sweep.processes import Running, end, start
from cdpo_lightning.sweep.screen import SweepScreen

LAST_LINES = 5  # of a job that failed, as shown
_PAUSE = 0.1  # seconds between two looks at the jobs


class Schedule:
    """The jobs of one launch."""

    def __init__(self, folder: Path, jobs: Sequence[Job], index: Index, places: int, devices: Sequence[str]) -> None:
        self._index, self._places, self._pool = index, places, Pool(devices)
        self._waiting = deque(jobs)
        self._running: list[Running] = []
        self.ended: dict[int, Ended] = {}
        self._screen, self._page = SweepScreen(folder, len(jobs), places), LivePage(folder)

    def run(self) -> list[Ended]:
        """What became of each job, by number.

        Raises:
            KeyboardInterrupt: the sweep was interrupted; its jobs were ended first.
        """
        self._skip()
        with _terminated_as_interrupted(), self._screen:
            try:
                while self._waiting or self._running:
                    self._fill()
                    self._collect()
                    self._screen.show(self._running, list(self.ended.values()))
                    if self._running:
                        time.sleep(_PAUSE)
            finally:
                end(self._running)
                for running in self._running:
                    self._index.note(running.job, "waiting")
                self._index.write()
        self._page.write(final=True)
        return [self.ended[number] for number in sorted(self.ended)]

    def _skip(self) -> None:
        """Sets aside what is done already, and what cannot be started."""
        for job in list(self._waiting):
            if job.refusal:
                self._waiting.remove(job)
                self._end(Ended(job, 2, message=(f"error: {job.refusal}",)))
            elif job.done:
                self._waiting.remove(job)
                self._end(Ended(job, 0, skipped=True))
            else:
                self._index.note(job, "waiting")
        self._index.write()

    def _fill(self) -> None:
        """Starts what there is room for; a job that needs many devices holds no smaller one up."""
        for job in list(self._waiting):
            if len(self._running) >= self._places:
                return
            wanted = min(job.devices, self._pool.size)
            slots = self._pool.take(wanted)
            if slots is not None:
                self._waiting.remove(job)
                self._running.append(start(job, slots))
                self._index.note(job, "running")
                self._index.write()

    def _collect(self) -> None:
        """Notes what has ended; what an earlier sweep had started and did not finish is started anew."""
        for running in list(self._running):
            if (status := running.poll()) is None:
                continue
            self._running.remove(running)
            self._pool.give_back(running.slots)
            if running.adopted and status:
                self._waiting.appendleft(running.job)
            else:
                message = running.last_lines(LAST_LINES) if status else ()
                self._end(Ended(running.job, status, time.monotonic() - running.start, message))

    def _end(self, ended: Ended) -> None:
        self.ended[ended.job.number] = ended
        facts = {"status": ended.status, "seconds": round(ended.seconds, 1), "message": list(ended.message)}
        if not ended.skipped:
            self._index.note(ended.job, "failed" if ended.status else "done", **facts)
        self._index.write()
        self._screen.ended(ended)
        self._page.write()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A sweep that is told to end (SIGTERM) ends its jobs as one that is interrupted does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
