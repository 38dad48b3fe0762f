"""The jobs of a sweep, and `jobs.json`, which records the number and the state of every job.

A job is identified by the hash of its configuration. So the same command finds its jobs again, a command with more values adds
jobs, and the number of a job never changes.
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
    """One job of a sweep: one run.

    Attributes:
        number: index in the sweep, from 0.
        identity: the hash of its configuration.
        overrides: those in which it differs from the other jobs, as on the command line.
        folder: of the run.
        log: the file for standard output and standard error.
        command: the command line that starts it.
        environment: variables to add to those of the sweep; None removes one.
        devices: the number of accelerators that it needs; 0 on the CPU.
        refusal: the error in its configuration; empty if it has none.
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
        """Return the name for messages, such as `job 3 (policy.beta=0.1)`."""
        return f"job {self.number} ({' '.join(self.overrides)})" if self.overrides else f"job {self.number}"

    @property
    def done(self) -> bool:
        """Return whether the run is complete: `metrics.json` is the last file that a run writes."""
        return (self.folder / "metrics.json").is_file()

    @property
    def begun(self) -> bool:
        """Return whether a run was started in the folder, which can be resumed."""
        return (self.folder / "identity").is_file()


@dataclass
class JobResult:
    """The result of a job that has ended.

    Attributes:
        status: exit status; 0 if it is done.
        seconds: how long it ran.
        last_lines: of its log, if it failed.
        skipped: it was done before this sweep started.
    """

    job: Job
    status: int
    seconds: float = 0.0
    last_lines: tuple[str, ...] = ()
    skipped: bool = False


class JobIndex:
    """The file `jobs.json` in the folder of the sweep."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jobs.json"
        self._entries: dict[int, dict[str, Any]] = self._read()
        self._requests: Counter[str] = Counter()

    def _read(self) -> dict[int, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        try:
            return {int(entry["number"]): entry for entry in json.loads(self.path.read_text(encoding="utf-8"))["jobs"]}
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.path}: truncated or altered ({error}); choose another hydra.sweep.dir") from error

    def number(self, identity: str) -> int:
        """Return the number of a configuration: the recorded one, else the next free one. The n-th call returns its n-th number."""
        recorded = sorted(number for number, entry in self._entries.items() if entry["identity"] == identity)
        repetition = self._requests[identity]
        self._requests[identity] += 1
        if repetition < len(recorded):
            return recorded[repetition]
        number = max(self._entries, default=-1) + 1
        self._entries[number] = {"number": number, "identity": identity, "state": "waiting"}
        return number

    def set_state(self, job: Job, state: str, **facts: Any) -> None:
        """Set the state of a job in memory; `write` saves it."""
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
        """Write the file atomically."""
        jobs = [self._entries[number] for number in sorted(self._entries)]
        write_text(self.path, json.dumps({"jobs": jobs}, indent=1) + "\n")


def refused_identity(overrides: tuple[str, ...]) -> str:
    """Return an identity for a job whose overrides are in error, so that it has no configuration to hash."""
    return "refused-" + hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:12]
