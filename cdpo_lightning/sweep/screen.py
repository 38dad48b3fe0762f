"""The output of a sweep: its progress on a terminal, failures as they happen, and a summary at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cdpo_lightning.sweep.jobs import JobResult
from cdpo_lightning.sweep.processes import RunningJob


def duration(seconds: float) -> str:
    """Return a duration as text: `40 s`, `12 min` or `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(results: Sequence[JobResult], running: Sequence[float], waiting: int, max_parallel: int) -> float | None:
    """Return the expected seconds until the last job ends, from the mean duration of the completed jobs; None if there are none.

    Args:
        results: of the jobs that have ended.
        running: seconds since the start, of each running job.
        waiting: number of jobs that are not started yet.
        max_parallel: number of jobs that run at a time.
    """
    durations = [result.seconds for result in results if not result.skipped and result.status == 0]
    if not durations:
        return None
    mean = sum(durations) / len(durations)
    left = [max(mean - seconds, 0.0) for seconds in running]
    return max([*left, (sum(left) + mean * waiting) / max_parallel])


class SweepScreen:
    """Prints failures at once to standard error and, on a terminal only, the state of the sweep."""

    def __init__(self, folder: Path, jobs: int, max_parallel: int) -> None:
        self._folder, self._jobs, self._max_parallel = folder, jobs, max_parallel
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        self._start = time.monotonic()

    def __enter__(self) -> SweepScreen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def show_result(self, result: JobResult) -> None:
        """Print a failed job with the last lines of its log; on a terminal also a completed job."""
        job = result.job
        if result.status:
            lines = [line.removeprefix("error: ") if result.status == 2 else line for line in result.last_lines]
            if result.status == 2 and lines:
                print(f"error: {job.name}: {lines[-1]}", file=sys.stderr, flush=True)
            else:
                print(f"{job.name} failed with status {result.status}; {job.log} ends:", file=sys.stderr, flush=True)
                print("".join(f"    {line}\n" for line in lines), end="", file=sys.stderr, flush=True)
        elif self._live:
            text = "was done already" if result.skipped else f"done in {duration(result.seconds)}"
            self._console.print(f"{job.name} {text}", soft_wrap=True)

    def show_state(self, running: Sequence[RunningJob], results: Sequence[JobResult]) -> None:
        """Update the state of the sweep on the terminal."""
        if self._live:
            self._live.update(Text("\n".join(self.lines(running, results)), no_wrap=True, overflow="ellipsis"), refresh=True)

    def lines(self, running: Sequence[RunningJob], results: Sequence[JobResult]) -> list[str]:
        """Return one line for the sweep, and one for each running job: its number and the last line of its log."""
        now = time.monotonic()
        failed = sum(result.status != 0 for result in results)
        left = time_left(
            results, [now - job.start for job in running], self._jobs - len(results) - len(running), self._max_parallel
        )
        parts = [f"{len(results)} of {self._jobs} jobs", f"{len(running)} running"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{duration(now - self._start)} so far"] + ([] if left is None else [f"about {duration(left)} left"])
        return [" · ".join(parts), *(f"  {job.job.number:>3}  {' '.join(job.last_lines(1)).strip()}" for job in running)]


def summary(results: Sequence[JobResult], folder: Path, command: str) -> list[str]:
    """Return the summary: how many jobs are done, the path of the page, and the failed jobs with `command` to run them again."""
    failed = [result for result in results if result.status]
    skipped = sum(result.skipped for result in results)
    page = folder / "report" / "index.html"
    lines = [f"{len(results) - len(failed)} of {len(results)} jobs done" + (f", {skipped} of them before" if skipped else "")]
    lines += [str(page)] if page.is_file() else []
    if failed:
        lines.append(f"{len(failed)} failed:")
        for result in failed:
            lines.append(f"  {result.job.name}, status {result.status}, {result.job.log}")
            lines += [f"    {line}" for line in result.last_lines]
        lines.append(f"to run only these again: {command}")
    return lines
