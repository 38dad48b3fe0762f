"""The jobs of a sweep and `jobs.json`, its memory: which configuration has which number, and what became of it.

A job is known by the hash of its configuration. So the same command finds its jobs again, a longer one adds to them, and a number,
once given, is never given to another.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdpo_lightning.errors import StorageError
from cdpo_lightning.store.files import write_text

STATES = ("waiting", "running", "done", "failed")


@dataclass(frozen=True)
class Job:
    """One job: a run of its own.

    Attributes:
        number: in the sweep, from 0.
        identity: the hash of its configuration.
        overrides: what makes it differ, as on the command line.
        folder: the run's.
        log: where its screen and its errors go.
        command: what starts it.
        environment: what its processes find there besides ours; None takes a variable away.
        devices: how many accelerators it needs; 0: it runs on the CPU.
        refusal: why it cannot be started at all, if so.
    """

    number: int
    identity: str
    overrides: tuple[str, ...]
    folder: Path
    log: Path
    command: tuple[str, ...] = ()
    environment: dict[str, str | None] = field(default_factory=dict)
    devices: int = 0
    refusal: str = ""

    @property
    def name(self) -> str:
        """`job 3 (policy.beta=0.1)`."""
        return f"job {self.number} ({' '.join(self.overrides)})" if self.overrides else f"job {self.number}"

    @property
    def done(self) -> bool:
        """Whether its run was finished: its figures are the last thing that a run writes."""
        return (self.folder / "metrics.json").is_file()

    @property
    def begun(self) -> bool:
        """Whether a run was begun in its folder, and may go on from there."""
        return (self.folder / "identity").is_file()


@dataclass
class Ended:
    """What became of a job: its exit status (0 done), its seconds, and its last lines."""

    job: Job
    status: int
    seconds: float = 0.0
    message: tuple[str, ...] = ()
    skipped: bool = False


class Index:
    """`jobs.json` of the sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jobs.json"
        self._entries: dict[int, dict[str, Any]] = self._read()
        self._asked: Counter[str] = Counter()

    def _read(self) -> dict[int, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        try:
            return {int(entry["number"]): entry for entry in json.loads(self.path.read_text(encoding="utf-8"))["jobs"]}
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.path}: truncated or altered ({error}); choose another hydra.sweep.dir") from error

    def number(self, identity: str) -> int:
        """The number of this configuration: its old one, else the next free; the n-th time it is asked for, the n-th such."""
        old = sorted(number for number, entry in self._entries.items() if entry["identity"] == identity)
        requested = self._asked[identity]
        self._asked[identity] += 1
        if requested < len(old):
            return old[requested]
        number = max(self._entries, default=-1) + 1
        self._entries[number] = {"number": number, "identity": identity, "state": "waiting"}
        return number

    def note(self, job: Job, state: str, **facts: Any) -> None:
        """Puts down what is known of a job now; `write` keeps it."""
        assert state in STATES, state
        self._entries[job.number] = {
            "number": job.number,
            "identity": job.identity,
            "overrides": list(job.overrides),
            "folder": str(job.folder),
            "log": str(job.log),
            "state": state,
            **facts,
        }

    def write(self) -> None:
        """The file anew, whole."""
        jobs = [self._entries[number] for number in sorted(self._entries)]
        write_text(self.path, json.dumps({"jobs": jobs}, indent=1) + "\n")


def refused_identity(overrides: tuple[str, ...]) -> str:
    """The name of a job that has no configuration, since none can be read from its overrides."""
    return "refused-" + hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:12]
