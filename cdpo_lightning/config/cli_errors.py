"""What the user is told, on one line, when a configuration cannot be composed or a run cannot be done."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # comes with omegaconf

from cdpo_lightning.config.parse import no_such_key
from cdpo_lightning.errors import CDPOError

COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, ValueError, CDPOError)
_HYDRAS_VALUE_ERROR = "Config group override must be"

refused: list[str] = []  # what was said, by this run or by the jobs of this sweep
failed: list[int] = []  # exit statuses of the sweep's jobs that were not done


def refuse(message: str) -> float:
    """Says at once what the user has to change; the objective of a run that was not done, nan."""
    message = " ".join(message.split())
    refused.append(message)
    print(f"error: {message}", file=sys.stderr, flush=True)
    return float("nan")


def interrupted(error: KeyboardInterrupt) -> int:
    """Says how to go on, in the sweep's own words if it was one; the exit status."""
    message = str(error) or "interrupted: the same command with resume=true goes on from the last checkpoint"
    print(message, file=sys.stderr, flush=True)
    return 130


def note_failures(statuses: Sequence[int]) -> None:
    """Remembers how the jobs of a sweep ended, for `status`."""
    failed.extend(status for status in statuses if status)


def status() -> int:
    """The exit status: 0 done, 2 if the user has to change something, 1 if a job of a sweep failed in any other way."""
    return 1 if any(status != 2 for status in failed) else 2 if refused or failed else 0


def sentence(error: Exception) -> str:
    """The mistake behind an error that was raised while the configuration was composed; raises any other error again."""
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
    """`experiment/nope` as the user wrote it; where a file asks for it, that file too."""
    group, _, name = path.removesuffix(".yaml").rpartition("/")
    requested = re.match(r"In '([^']+)'", text)
    where = f" (asked for by conf/{requested[1]}.yaml)" if requested and requested[1] != "config" else ""
    there = f"conf/{group} has {', '.join(options)}" if options else f"see conf/{group}"
    return f"{group or 'config'}={name}: not found{where}; {there}"
