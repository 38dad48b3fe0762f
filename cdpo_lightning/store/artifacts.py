"""The content-addressed store: scores, log-probabilities and trained weights under the hash of what made them.

An artifact is a folder `KIND/HASH/` with `data.safetensors` and `meta.json`. It is written under a temporary name and renamed, and
its hash is checked on reading: a cut or altered file is made again, with a warning. Of processes that want the same artifact at the
same time, one makes it and the others wait for it. Among the ranks of one run the first one writes, and decides whether an artifact
is there; all take part in making one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cdpo_lightning import ranks
from cdpo_lightning.errors import StorageError
from cdpo_lightning.store.files import alone, sibling, write_json

VERSION = 4  # of everything that is stored; raise it when a scorer's or a stage's arithmetic changes


class StoreWarning(UserWarning):
    """A stored file was cut or altered; what it held is computed again."""


def digest(*parts: object) -> str:
    """Twenty hex digits that name `parts`, which are plain data (or print as what they are)."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _seal(data: bytes, meta: Mapping[str, object]) -> str:
    """The hash of all that an artifact holds: its tensors and what is known about them."""
    return hashlib.sha256(data + json.dumps(meta, sort_keys=True).encode()).hexdigest()


class Ledger:
    """What a run computed itself, by artifact, kept in its folder: so that a resumed run reports what an uninterrupted one does."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self._entries: dict[str, dict[str, int]] = json.loads(path.read_text()) if resume and path.exists() else {}

    def record(self, artifact: str, name: str, count: int) -> None:
        """Notes that `artifact` took `count` of `name`; noting it twice counts once."""
        self._entries[artifact] = {name: count}
        if ranks.is_first():
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
        result = self._found(folder, key)
        if result is not None:
            return result
        with alone(folder.with_name(f".{key}.lock")) if ranks.is_first() else nullcontext():
            result = self._found(folder, key)  # another run may have made it while this one waited
            if result is not None:
                return result
            tensors, meta = make()
            tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            if forwards is not None:
                self.ledger.record(f"{kind}/{key}", *forwards)
            if ranks.is_first():
                self._write(folder, tensors, {"made_of": dict(made_of), "facts": meta})
            ranks.barrier()
        return Artifact(key, tensors, meta)

    def holds(self, kind: str, made_of: Mapping[str, object]) -> bool:
        """Whether there is an artifact of `made_of`; whether it is whole, reading it will tell."""
        return (self._root / kind / digest(VERSION, kind, dict(made_of))).is_dir()

    def _found(self, folder: Path, key: str) -> Artifact | None:
        """The artifact, if the first rank has found it whole.

        Raises:
            StorageError: this rank has not.
        """
        result = self._read(folder, key) if ranks.is_first() else None
        if not ranks.broadcast(result is not None) or ranks.is_first():
            return result
        result = self._read(folder, key)
        if result is None:
            raise StorageError(f"{folder}: rank 0 can read it and rank {ranks.rank()} cannot; put artifacts_dir where all can")
        return result

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
        data, temporary = save_tensors(tensors), sibling(folder)
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
