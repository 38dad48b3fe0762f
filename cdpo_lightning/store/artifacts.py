"""The content-addressed store: scores, log-probabilities and trained weights, each stored under the hash of its inputs.

An artifact is a folder `KIND/HASH/` with `data.safetensors` and `meta.json`. It is written under a temporary name and renamed. Its
SHA-256 is checked when it is read; a truncated or altered artifact is computed again, with a warning. If several processes need the
same artifact at the same time, one computes it and the others wait. Among the ranks of one run, rank 0 decides whether an artifact
exists, and writes it; all ranks take part in computing it.
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
from cdpo_lightning.store.files import exclusive, temporary_name, write_json

VERSION = 4  # part of every hash; raise it when the arithmetic of a scorer or a stage changes


class StoreWarning(UserWarning):
    """A stored artifact was truncated or altered, and is computed again."""


def digest(*parts: object) -> str:
    """Return 20 hex digits of the SHA-256 of `parts`: plain data, or objects whose `repr` shows their value."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _checksum(data: bytes, meta: Mapping[str, object]) -> str:
    """Return the SHA-256 of an artifact's tensors and metadata."""
    return hashlib.sha256(data + json.dumps(meta, sort_keys=True).encode()).hexdigest()


class ForwardCounter:
    """Counts the forward passes that this run computed itself, by artifact.

    The counts are kept in the run's folder: a resumed run reports the same totals as an uninterrupted one.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self._entries: dict[str, dict[str, int]] = json.loads(path.read_text()) if resume and path.exists() else {}

    def record(self, artifact: str, name: str, count: int) -> None:
        """Record that computing `artifact` took `count` passes of kind `name`, in place of an earlier record of the artifact."""
        self._entries[artifact] = {name: count}
        if ranks.is_first():
            write_json(self._path, self._entries)

    def total(self, name: str) -> int:
        """Return the number of passes of kind `name`, over all artifacts that this run computed."""
        return sum(entry.get(name, 0) for entry in self._entries.values())


@dataclass(frozen=True)
class Artifact:
    """A stored result: its hash, its tensors by name, and its metadata."""

    key: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


TensorsAndMeta = tuple[dict[str, Tensor], dict[str, Any]]


class Store:
    """The artifacts in `artifacts_dir`, which all runs share."""

    def __init__(self, root: Path, forward_counter: ForwardCounter) -> None:
        self._root, self.forward_counter = root, forward_counter

    def get(
        self,
        kind: str,
        made_of: Mapping[str, object],
        make: Callable[[], TensorsAndMeta],
        forwards: tuple[str, int] | None = None,
    ) -> Artifact:
        """Return the artifact of the inputs `made_of`: read if it is stored and intact, else computed by `make` and stored.

        Args:
            kind: the name of the folder, such as `reward_scores`.
            made_of: everything that the artifact depends on, as plain data.
            make: computes the tensors and the metadata.
            forwards: the kind and number of forward passes that `make` takes, for the forward counter.

        Raises:
            StorageError: the artifact cannot be written, or rank 0 can read it and another rank cannot.
        """
        key = digest(VERSION, kind, dict(made_of))
        folder = self._root / kind / key
        result = self._read_on_all_ranks(folder, key)
        if result is not None:
            return result
        with exclusive(folder.with_name(f".{key}.lock")) if ranks.is_first() else nullcontext():
            result = self._read_on_all_ranks(folder, key)  # another run may have stored it while this one waited for the lock
            if result is not None:
                return result
            tensors, meta = make()
            tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            if forwards is not None:
                self.forward_counter.record(f"{kind}/{key}", *forwards)
            if ranks.is_first():
                self._write(folder, tensors, {"made_of": dict(made_of), "facts": meta})
            ranks.barrier()
        return Artifact(key, tensors, meta)

    def holds(self, kind: str, made_of: Mapping[str, object]) -> bool:
        """Return whether an artifact of the inputs `made_of` is stored, without checking that it is intact."""
        return (self._root / kind / digest(VERSION, kind, dict(made_of))).is_dir()

    def _read_on_all_ranks(self, folder: Path, key: str) -> Artifact | None:
        """Return the artifact; None if rank 0 has none, or a damaged one."""
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
            if _checksum(data, {name: meta[name] for name in ("made_of", "facts")}) != meta["sha256"]:
                raise ValueError("its content does not match its SHA-256")
            return Artifact(key, load_tensors(data), meta["facts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{folder}: truncated or altered ({error}); computed again", StoreWarning, stacklevel=3)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def _write(self, folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        data, temporary = save_tensors(tensors), temporary_name(folder)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({error.strerror}); set artifacts_dir elsewhere") from error
        try:
            (temporary / "data.safetensors").write_bytes(data)
            text = json.dumps({**meta, "sha256": _checksum(data, meta)}, indent=1, sort_keys=True)
            (temporary / "meta.json").write_text(text + "\n", encoding="utf-8")
            temporary.rename(folder)
        except OSError as error:
            if not folder.exists():  # without locks another run may have stored the same artifact meanwhile
                raise StorageError(f"{folder}: cannot be written ({error.strerror}); free some space") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
