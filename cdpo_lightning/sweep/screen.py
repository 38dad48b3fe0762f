"""What a sweep shows: its progress on a terminal; elsewhere nothing but failures and the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cdpo_lightning.sweep.jobs import Ended
from cdpo_lightning.sweep.processes import Running


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(ended: Sequence[Ended], running: Sequence[float], waiting: int, places: int) -> float | None:
    """Seconds until the last job ends, if all take as long as those that have ended did on average; None before one has.

    Args:
        ended: what has ended.
        running: for how many seconds each of those running has run.
        waiting: how many were not started.
        places: how many run at a time.
    """
    known = [one.seconds for one in ended if not one.skipped and one.status == 0]
    if not known:
        return None
    mean = sum(known) / len(known)
    left = [max(mean - seconds, 0.0) for seconds in running]
    return max([*left, (sum(left) + mean * waiting) / places])


class SweepScreen:
    """Two kinds of lines: a failure, at once and on standard error; the state of things, only on a terminal."""

    def __init__(self, folder: Path, jobs: int, places: int) -> None:
        self._folder, self._jobs, self._places = folder, jobs, places
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

    def ended(self, ended: Ended) -> None:
        """A failure is said when it happens, with its last lines; on a terminal a success too."""
        job = ended.job
        if ended.status:
            lines = [line.removeprefix("error: ") if ended.status == 2 else line for line in ended.message]
            if ended.status == 2 and lines:
                print(f"error: {job.name}: {lines[-1]}", file=sys.stderr, flush=True)
            else:
                print(f"{job.name} failed with status {ended.status}; {job.log} ends:", file=sys.stderr, flush=True)
                print("".join(f"    {line}\n" for line in lines), end="", file=sys.stderr, flush=True)
        elif self._live:
            how = "was done already" if ended.skipped else f"done in {duration(ended.seconds)}"
            self._console.print(f"{job.name} {how}", soft_wrap=True)

    def show(self, running: Sequence[Running], ended: Sequence[Ended]) -> None:
        """The state of things now."""
        if self._live:
            self._live.update(Text("\n".join(self.lines(running, ended)), no_wrap=True, overflow="ellipsis"), refresh=True)

    def lines(self, running: Sequence[Running], ended: Sequence[Ended]) -> list[str]:
        """One line for the sweep, and one for each job that runs: its number, and what it said last."""
        now = time.monotonic()
        failed = sum(one.status != 0 for one in ended)
        left = time_left(ended, [now - one.start for one in running], self._jobs - len(ended) - len(running), self._places)
        parts = [f"{len(ended)} of {self._jobs} jobs", f"{len(running)} running"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{duration(now - self._start)} so far"] + ([] if left is None else [f"about {duration(left)} left"])
        return [" · ".join(parts), *(f"  {one.job.number:>3}  {' '.join(one.last_lines(1)).strip()}" for one in running)]


def summary(ended: Sequence[Ended], folder: Path, again: str) -> list[str]:
    """The last lines of a sweep: how many were done, its page, and what failed with its last lines."""
    failed = [one for one in ended if one.status]
    skipped = sum(one.skipped for one in ended)
    page = folder / "report" / "index.html"
    lines = [f"{len(ended) - len(failed)} of {len(ended)} jobs done" + (f", {skipped} of them before" if skipped else "")]
    lines += [str(page)] if page.is_file() else []
    if failed:
        lines.append(f"{len(failed)} failed:")
        for one in failed:
            lines += [f"  {one.job.name}, status {one.status}, {one.job.log}", *(f"    {line}" for line in one.message)]
        lines.append(f"to run only these again: {again}")
    return lines
