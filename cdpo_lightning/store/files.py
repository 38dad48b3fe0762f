"""Files that are written whole or not at all, versions of them, and the lock that one process of a machine holds at a time."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from cdpo_lightning import ranks
from cdpo_lightning.errors import StorageError

TEMPORARY = ".part"  # the end of the name of a file that is being written
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Around whatever writes `path`.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    try:
        yield
    except SafetensorError as error:
        if "os error" not in str(error):
            raise
        raise _not_written(path, str(error)) from error
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in _NO_SPACE + _NO_PERMISSION:
            raise
        raise _not_written(path, error.strerror or str(error)) from error


def _not_written(path: Path, reason: str) -> StorageError:
    return StorageError(f"{path}: cannot be written ({reason}); free some space, or choose another folder")


def sibling(path: Path) -> Path:
    """A name in the same folder for what becomes `path` once it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when all went well, removed otherwise.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    temporary = sibling(path)
    with written(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors makes its files private
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a folder that all ranks write into; the first one renames it when all are done."""
    temporary = ranks.broadcast(sibling(path))
    with written(path):
        try:
            if ranks.is_first():
                temporary.mkdir(parents=True)
            ranks.barrier()
            yield temporary
            ranks.barrier()
            if ranks.is_first():
                if path.exists():
                    grow_older(path)
                temporary.rename(path)
            ranks.barrier()
        finally:
            if ranks.is_first():
                shutil.rmtree(temporary, ignore_errors=True)


def older(path: Path, age: int) -> Path:
    """The name of what was `path` so many versions ago."""
    return path.with_name(f"{path.stem}-{age}{path.suffix}") if age else path


def _ages(path: Path) -> list[int]:
    """Of the versions that there are, the newest first."""
    known = itertools.takewhile(lambda age: older(path, age).exists(), itertools.count(1))
    return [0] * path.exists() + list(known)


def newest(path: Path) -> Path | None:
    """The newest version of `path`, if there is any: for a moment, while one takes the other's place, it is not `path` itself."""
    return next((older(path, age) for age in _ages(path)), None)


def grow_older(path: Path) -> None:
    """Makes room for a new version of `path`."""
    for age in reversed(_ages(path)):
        older(path, age).rename(older(path, age + 1))


def prune(path: Path, keep: int) -> None:
    """Removes all but the newest `keep` versions of `path`."""
    for age in _ages(path)[keep:]:
        version = older(path, age)
        shutil.rmtree(version) if version.is_dir() else version.unlink()


def write_json(path: Path, value: object) -> None:
    """`value` as JSON in `path`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `path`, whole or not at all; its folder is made where there is none.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write the text as UTF-8 with its line ends as they are; what UTF-8 cannot encode becomes `?`. See `write_bytes`."""
    write_bytes(path, content.encode("utf-8", errors="replace"))


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Around what only one process of this machine may do at a time, the one that holds the lock `path`; the others wait.

    The lock is the kernel's, on the open file: it ends with its owner, however that ends. Where the file system has no locks nobody
    waits, and the same thing may be done twice.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # who waits on this file sees that it is gone, and begins anew


def _locked(path: Path) -> TextIO:
    while True:
        file = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except FileNotFoundError:  # removed between the two questions
            pass
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return file
            raise
        file.close()
