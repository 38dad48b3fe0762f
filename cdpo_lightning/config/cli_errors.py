"""The error messages and the exit status of the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextvars import ContextVar

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # comes with omegaconf

from cdpo_lightning.config.parse import no_such_key
from cdpo_lightning.errors import CDPOError

# Exceptions of Hydra's composition that may be a mistake of the user; `explain` raises the others again.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, CDPOError)
_HYDRAS_VALUE_ERROR = "Config group override must be"


class ExitStatus:
    """Collects the failures of one call of the command line: refused runs, and failed jobs of a sweep."""

    def __init__(self) -> None:
        self._refused = False
        self._failed: list[int] = []  # exit statuses of jobs

    def refuse(self, message: str) -> float:
        """Print the message for the user at once; return the objective of a run that was not done, nan."""
        self._refused = True
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
        return float("nan")

    def note_failures(self, statuses: Sequence[int]) -> None:
        """Add the exit statuses of a sweep's jobs."""
        self._failed.extend(status for status in statuses if status)

    def code(self) -> int:
        """Return the exit status: 0 without failures, 2 if all failures are mistakes of the user, else 1."""
        if any(status != 2 for status in self._failed):
            return 1
        return 2 if self._refused or self._failed else 0


# Hydra calls the launcher of a sweep itself, so that `run.py` cannot hand the status on to it.
_current: ContextVar[ExitStatus] = ContextVar("exit_status")


def start() -> ExitStatus:
    """Return a new, empty exit status, which `current` returns from now on."""
    status = ExitStatus()
    _current.set(status)
    return status


def current() -> ExitStatus:
    """Return the exit status of this call of the command line."""
    return _current.get(None) or start()


def report_interrupt(error: KeyboardInterrupt) -> int:
    """Print how to continue after an interrupt, which is the error's message in a sweep; return the exit status."""
    message = str(error) or "interrupted: the same command with resume=true goes on from the last checkpoint"
    print(message, file=sys.stderr, flush=True)
    return 130


def explain(error: Exception) -> str:
    """Return the message for an error of composing the configuration; raise the error again if it is no mistake of the user."""
    if isinstance(error, CDPOError):
        return str(error)
    text = " ".join(str(error).split("Config search path:")[0].split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_file(error.missing_cfg_file, list(error.options or []), text)
    if isinstance(error, OverrideParseException):
        why = text.partition("See https:")[0].removeprefix(f"Error parsing override '{error.override}'").strip()
        return f"{error.override}: not a key and a value ({why}); write key=value, and quote what is not a plain word"
    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        unknown = re.match(r"Could not override '([^']+)'\. To append to your config", text)
        return no_such_key(unknown[1]) if unknown else text
    if text.startswith(_HYDRAS_VALUE_ERROR):
        return f"{text}; a group is chosen by the name of its file, such as dataset=closed_form"
    raise error


def _missing_file(path: str, options: list[str], text: str) -> str:
    """Return the message for a missing file `experiment/nope`: `experiment=nope`, and the file that names it if there is one."""
    group, _, name = path.removesuffix(".yaml").rpartition("/")
    parent = re.match(r"In '([^']+)'", text)
    where = f" (named in conf/{parent[1]}.yaml)" if parent and parent[1] != "config" else ""
    choices = f"conf/{group} has {', '.join(options)}" if options else f"see conf/{group}"
    return f"{group or 'config'}={name}: not found{where}; {choices}"
