"""A run's folder: opened anew, or found again to resume."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from cdpo_lightning import ranks
from cdpo_lightning.config import RunConfig, to_yaml
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.store.files import TEMPORARY, whole_file


def git_commit() -> str:
    """The commit of the code, `unknown` outside a checkout."""
    here = Path(__file__).parent
    result = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


_DATED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")  # what conf/config.yaml calls a run's folder


def _held(folder: Path) -> str | None:
    """The identity of the run that was begun in the folder, if one was."""
    identity = folder / "identity"
    return identity.read_text(encoding="utf-8").strip() if identity.is_file() else None


def _to_resume(config: RunConfig) -> Path:
    """The folder that was named, or else the newest of the dated ones whose run is of this configuration.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(config.run_dir)
    if _held(folder) is not None:
        return folder
    if not _DATED.fullmatch(folder.name):
        raise ConfigError(f"resume=true: no run was begun in run_dir={folder}; start it without resume")
    for other in sorted(folder.parent.glob("*"), reverse=True):
        if _held(other) == config.identity():
            return other
    raise ConfigError(f"resume=true: no run of this configuration in {folder.parent}; start it without resume, or give its run_dir")


def find_run(config: RunConfig) -> Path:
    """The run's folder, an old one if `resume`; nothing is written. The first rank finds it: the others' clocks may differ.

    Raises:
        ConfigError: nothing to resume, or the folder holds a run of another configuration, one already begun, or is a file.
    """
    return ranks.broadcast(_find_run(config) if ranks.is_first() else Path())


def _find_run(config: RunConfig) -> Path:
    folder = _to_resume(config) if config.resume else Path(config.run_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir={folder}: is a file; choose another folder")
    held = _held(folder)
    if held is not None and not config.resume:
        raise ConfigError(f"run_dir={folder}: a run was begun there; add resume=true, or choose another folder")
    if held is not None and held != config.identity():
        raise ConfigError(f"run_dir={folder}: holds a run of another configuration; resume with the same values")
    return folder


def begin_run(config: RunConfig, folder: Path) -> None:
    """Puts `config.yaml` and the run's identity into its folder, and clears away what a killed process was writing there.

    Raises:
        StorageError: the folder cannot be written.
    """
    if ranks.is_first():
        _begin(config, folder)
    ranks.barrier()


def _begin(config: RunConfig, folder: Path) -> None:
    if config.resume:
        for part in folder.rglob(f".*{TEMPORARY}"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    with whole_file(folder / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")
    with whole_file(folder / "identity") as temporary:
        temporary.write_text(config.identity() + "\n", encoding="utf-8")
