"""Functions that the loaders of language models and of score models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdpo_lightning.errors import ModelError


def looks_like_a_path(name: str) -> bool:
    """Return whether the name was meant as a local folder, not as a name on the hub."""
    return name.startswith((".", "/", "~"))


def folder_of(name: str) -> Path:
    """Return the local folder of that name, whether or not it exists."""
    return Path(name).expanduser()


def first_line(error: Exception) -> str:
    """Return the first line of the error's message, its class if the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def require_all_weights(loading_info: Mapping[str, Any], message: str, remedy: str = "fetch it again") -> None:
    """Check that a folder had all weights of the model, as transformers' `output_loading_info` reports it.

    Args:
        message: what the error begins with, the key or the folder.
        remedy: what the error ends with.

    Raises:
        ModelError: weights are missing; transformers has filled them with random numbers.
    """
    missing: Sequence[str] = sorted(loading_info["missing_keys"])
    if missing:
        raise ModelError(f"{message}: no weights for {missing[0]} and {len(missing) - 1} more; {remedy}")
