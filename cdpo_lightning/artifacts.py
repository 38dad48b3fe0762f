"""The content-addressed store: scores, log-probabilities and trained weights under the hash of what made them.

An artifact is a folder `KIND/HASH/` with `data.safetensors` and `meta.json`. It is written under a temporary name and renamed, and
its hash is checked on reading: a cut or altered file is made again, with a warning. Of processes that want the same artifact at the
same time, one makes it and the others wait for it. Among the ranks of one run the first one writes, and decides whether an artifact
is there; all take part in making one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cdpo_lightning import ranks
from cdpo_lightning.errors import StorageError

VERSION = 2  # of everything that is stored; raise it when a scorer's or a stage's arithmetic changes
TEMPORARY = ".part"  # the end of the name of a file that is being written
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class StoreWarning(UserWarning):
    """A stored file was cut or altered; what it held is computed again."""


def digest(*parts: object) -> str:
    """Twenty hex digits that name `parts`, which are plain data (or print as what they are)."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _seal(data: bytes, meta: Mapping[str, object]) -> str:
    """The hash of all that an artifact holds: its tensors and what is known about them."""
    return hashlib.sha256(data + json.dumps(meta, sort_keys=True).encode()).hexdigest()


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


def beside(path: Path) -> Path:
    """A name in the same folder for what becomes `path` once it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when all went well, removed otherwise.

    Raises:
        StorageError: there is no space or no permission to write there.
    """
    temporary = beside(path)
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
    temporary = ranks.agreed(beside(path))
    with written(path):
        try:
            if ranks.first():
                temporary.mkdir(parents=True)
            ranks.wait()
            yield temporary
            ranks.wait()
            if ranks.first():
                if path.exists():
                    grow_older(path)
                temporary.rename(path)
            ranks.wait()
        finally:
            if ranks.first():
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


class Ledger:
    """What a run computed itself, by artifact, kept in its folder: so that a resumed run reports what an uninterrupted one does."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self._entries: dict[str, dict[str, int]] = json.loads(path.read_text()) if resume and path.exists() else {}

    def record(self, artifact: str, name: str, count: int) -> None:
        """Notes that `artifact` took `count` of `name`; noting it twice counts once."""
        self._entries[artifact] = {name: count}
        if ranks.first():
            write_json(self._path, self._entries)

    def total(self, name: str) -> int:
        """The sum of `name` over all artifacts that this run computed."""
        return sum(entry.get(name, 0) for entry in self._entries.values())


@dataclass(frozen=True)
class Artifact:
    """Tensors by name, what is known about them, and the hash that names them."""

    key: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


Made = tuple[dict[str, Tensor], dict[str, Any]]


class Store:
    """`artifacts_dir`, shared by all runs."""

    def __init__(self, root: Path, ledger: Ledger) -> None:
        self._root, self.ledger = root, ledger

    def get(
        self,
        kind: str,
        made_of: Mapping[str, object],
        make: Callable[[], Made],
        forwards: tuple[str, int] | None = None,
    ) -> Artifact:
        """The artifact of `made_of`, read if it is there and whole, else made, noted in the ledger and stored."""
        key = digest(VERSION, kind, dict(made_of))
        folder = self._root / kind / key
        found = self._found(folder, key)
        if found is not None:
            return found
        with alone(folder.with_name(f".{key}.lock")) if ranks.first() else nullcontext():
            found = self._found(folder, key)  # another run may have made it while this one waited
            if found is not None:
                return found
            tensors, meta = make()
            tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            if forwards is not None:
                self.ledger.record(f"{kind}/{key}", *forwards)
            if ranks.first():
                self._write(folder, tensors, {"made_of": dict(made_of), "facts": meta})
            ranks.wait()
        return Artifact(key, tensors, meta)

    def holds(self, kind: str, made_of: Mapping[str, object]) -> bool:
        """Whether there is an artifact of `made_of`; whether it is whole, reading it will tell."""
        return (self._root / kind / digest(VERSION, kind, dict(made_of))).is_dir()

    def _found(self, folder: Path, key: str) -> Artifact | None:
        """The artifact, if the first rank has found it whole.

        Raises:
            StorageError: this rank has not.
        """
        found = self._read(folder, key) if ranks.first() else None
        if not ranks.agreed(found is not None) or ranks.first():
            return found
        found = self._read(folder, key)
        if found is None:
            raise StorageError(f"{folder}: rank 0 can read it and rank {ranks.number()} cannot; put artifacts_dir where all can")
        return found

    def _read(self, folder: Path, key: str) -> Artifact | None:
        if not folder.exists():
            return None
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            data = (folder / "data.safetensors").read_bytes()
            if _seal(data, {name: meta[name] for name in ("made_of", "facts")}) != meta["sha256"]:
                raise ValueError("its content does not match its hash")
            return Artifact(key, load_tensors(data), meta["facts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{folder}: cut or altered ({error}); computed again", StoreWarning, stacklevel=3)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def _write(self, folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        data, temporary = save_tensors(tensors), beside(folder)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({error.strerror}); set artifacts_dir elsewhere") from error
        try:
            (temporary / "data.safetensors").write_bytes(data)
            sealed = json.dumps({**meta, "sha256": _seal(data, meta)}, indent=1, sort_keys=True)
            (temporary / "meta.json").write_text(sealed + "\n", encoding="utf-8")
            temporary.rename(folder)
        except OSError as error:
            if not folder.exists():  # another run may have stored the same artifact meanwhile
                raise StorageError(f"{folder}: cannot be written ({error.strerror}); free some space") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
