"""Selects the folder of a run, a new one or one to resume, and prepares it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from cdpo_lightning import ranks
from cdpo_lightning.config import RunConfig, to_yaml
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.store.files import TEMPORARY_SUFFIX, atomic_file


def git_commit() -> str:
    """Return the short commit hash of the code, `unknown` outside a checkout."""
    here = Path(__file__).parent
    result = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")  # the default name of a run's folder, in conf/config.yaml


def _identity(folder: Path) -> str | None:
    """Return the hash of the configuration of the run in this folder, None if no run was begun there."""
    path = folder / "identity"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _folder_to_resume(config: RunConfig) -> Path:
    """Return `run_dir` if a run was begun there, else the newest folder with a timestamp for a name and the same configuration.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(config.run_dir)
    if _identity(folder) is not None:
        return folder
    if not _TIMESTAMP.fullmatch(folder.name):
        raise ConfigError(f"resume=true: no run was begun in run_dir={folder}; start it without resume")
    for other in sorted(folder.parent.glob("*"), reverse=True):
        if _identity(other) == config.identity():
            return other
    raise ConfigError(f"resume=true: no run of this configuration in {folder.parent}; start it without resume, or give its run_dir")


def find_run(config: RunConfig) -> Path:
    """Return the run's folder, an existing one if `resume` is set; write nothing.

    Rank 0 chooses the folder for all ranks: a default name holds the time, and their clocks may differ.

    Raises:
        ConfigError: there is no run to resume, the folder holds another run, or `run_dir` is a file.
    """
    return ranks.broadcast(_find_run(config) if ranks.is_first() else Path())


def _find_run(config: RunConfig) -> Path:
    folder = _folder_to_resume(config) if config.resume else Path(config.run_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir={folder}: is a file; choose another folder")
    identity = _identity(folder)
    if identity is not None and not config.resume:
        raise ConfigError(f"run_dir={folder}: a run was begun there; add resume=true, or choose another folder")
    if identity is not None and identity != config.identity():
        raise ConfigError(f"run_dir={folder}: holds a run of another configuration; resume with the same values")
    return folder


def begin_run(config: RunConfig, folder: Path) -> None:
    """Write `config.yaml` and the hash of the configuration to the folder; remove temporary files that a killed process left there.

    Raises:
        StorageError: the folder cannot be written.
    """
    if ranks.is_first():
        _begin(config, folder)
    ranks.barrier()


def _begin(config: RunConfig, folder: Path) -> None:
    if config.resume:
        for part in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    with atomic_file(folder / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")
    with atomic_file(folder / "identity") as temporary:
        temporary.write_text(config.identity() + "\n", encoding="utf-8")
