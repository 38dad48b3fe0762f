"""Atomic files and folders, their numbered older versions, and a lock that one process at a time holds."""

from __future__ import annotations

import errno
import itertools
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock
from safetensors import SafetensorError

from cdpo_lightning import ranks
from cdpo_lightning.errors import StorageError

TEMPORARY_SUFFIX = ".part"  # of a file or folder that is still being written
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the error of a failed write to `path` into ours.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    try:
        yield
    except SafetensorError as error:
        if "os error" not in str(error):
            raise
        raise _cannot_write(path, str(error)) from error
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in _NO_SPACE + _NO_PERMISSION:
            raise
        raise _cannot_write(path, error.strerror or str(error)) from error


def _cannot_write(path: Path, reason: str) -> StorageError:
    return StorageError(f"{path}: cannot be written ({reason}); free some space, or choose another folder")


def temporary_name(path: Path) -> Path:
    """Return an unused name in the same folder, to write to before renaming to `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write to; rename it to `path` on success, remove it on an error.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    temporary = temporary_name(path)
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors makes its files readable by the owner only
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that all ranks write to; rank 0 renames it to `path` once all are done.

    An existing folder becomes the next older version.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    temporary = ranks.broadcast(temporary_name(path))
    with storage_errors(path):
        try:
            if ranks.is_first():
                temporary.mkdir(parents=True)
            ranks.barrier()
            yield temporary
            ranks.barrier()
            if ranks.is_first():
                if path.exists():
                    rotate_versions(path)
                temporary.rename(path)
            ranks.barrier()
        finally:
            if ranks.is_first():
                shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; create the folder if it does not exist.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write text to `path` atomically as UTF-8, with unchanged line ends; characters that UTF-8 cannot encode become `?`."""
    write_bytes(path, content.encode("utf-8", errors="replace"))


def _version(path: Path, age: int) -> Path:
    """Return the name of a version: `last.ckpt` at age 0, `last-1.ckpt` at age 1, and so on."""
    return path.with_name(f"{path.stem}-{age}{path.suffix}") if age else path


def _ages(path: Path) -> list[int]:
    """Return the ages of the versions that exist, newest first."""
    older = itertools.takewhile(lambda age: _version(path, age).exists(), itertools.count(1))
    return [0] * path.exists() + list(older)


def newest_version(path: Path) -> Path | None:
    """Return the newest version of `path`, or None. It is not `path` itself if a process was killed between two renames."""
    return next((_version(path, age) for age in _ages(path)), None)


def rotate_versions(path: Path) -> None:
    """Rename every version to the next older one, so that `path` is free."""
    for age in reversed(_ages(path)):
        _version(path, age).rename(_version(path, age + 1))


def remove_old_versions(path: Path, keep: int) -> None:
    """Remove all but the newest `keep` versions of `path`."""
    for age in _ages(path)[keep:]:
        version = _version(path, age)
        shutil.rmtree(version) if version.is_dir() else version.unlink()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Run the block in one process at a time; the others wait. `path` is the lock file, which exists only during the block.

    filelock locks the file with `flock`, so the kernel releases the lock when its owner ends, also by kill -9. If the file was
    removed while filelock waited for it, filelock locks the new file instead; therefore the owner may remove it at the end. On a
    file system without locks nobody waits, and the work may be done twice. filelock's own fallback there is switched off: it takes
    the existence of the file for the lock, and a killed owner would leave it locked for ever.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    lock = FileLock(path, fallback_to_soft=False)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: afterwards it may be another process's lock
        lock.release()


def _acquire(lock: BaseFileLock) -> None:
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
