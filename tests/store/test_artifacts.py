"""The artifact store: intact artifacts are read, all others computed again; no partial file is ever visible."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from cdpo_lightning.errors import StorageError
from cdpo_lightning.store.artifacts import ForwardCounter, Store, StoreWarning, digest
from cdpo_lightning.store.files import atomic_file, atomic_folder, newest_version, remove_old_versions, rotate_versions, write_json

MADE_OF = {"scorer": "abc", "rows": "def", "precision": "32-true"}
TENSORS = {"score": torch.linspace(0, 1, 7, dtype=torch.float64), "count": torch.arange(3)}
FACTS = {"reward/unit": 1.5, "reward/pair_accuracy": 2 / 3}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "artifacts", ForwardCounter(tmp_path / "ledger.json", resume=False))


def get(store, made_of=MADE_OF, kind="reward_scores", forwards=("store/reward_forwards", 7)):
    """Return the artifact, and how often it was computed."""
    made = []

    def make():
        made.append(1)
        return dict(TENSORS), dict(FACTS)

    return store.get(kind, made_of, make, forwards), len(made)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_round_trip(store, tmp_path):
    first, made = get(store)
    assert made == 1
    for again, made in (get(store), get(Store(tmp_path / "artifacts", store.forward_counter))):
        assert made == 0
        assert again.key == first.key
        assert again.meta == first.meta == FACTS
        assert all(torch.equal(again.tensors[name], value) for name, value in TENSORS.items())
    assert files(tmp_path / "artifacts") == {f"reward_scores/{first.key}/{n}" for n in ("meta.json", "data.safetensors")}


def test_a_computed_artifact_and_a_stored_one_have_the_same_form(store):
    """On the CPU, contiguous and without a graph, also if the tensor was strided and had a gradient."""
    weight = torch.arange(6.0, requires_grad=True).view(2, 3).T
    for _ in range(2):
        result = store.get("w", {"a": 1}, lambda: ({"weight": weight}, {})).tensors["weight"]
        assert result.tolist() == [[0, 3], [1, 4], [2, 5]]
        assert not result.requires_grad
        assert result.is_contiguous()


def test_the_key_changes_with_any_part(store):
    keys = [get(store, made_of)[0].key for made_of in (MADE_OF, *({**MADE_OF, name: "other"} for name in MADE_OF))]
    keys += [get(store, {**MADE_OF, "new": 1})[0].key, get(store, kind="cost_scores")[0].key]
    assert len(set(keys)) == len(keys) == 6
    assert get(store, dict(reversed(MADE_OF.items())))[1] == 0, "the order of the keys does not count"


def test_digest_differs_for_values_that_print_alike():
    parts = [("a", "b"), ("ab",), (["a", "b"],), ("a", "b", None), (1,), (1.0,), ("1",), (True,)]
    assert len({digest(*p) for p in parts}) == len(parts)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def alter_a_fact(path):
    meta = json.loads(path.read_text())
    meta["facts"]["reward/unit"] = 15.0
    path.write_text(json.dumps(meta))


DATA, META = "data.safetensors", "meta.json"
FAULTS = [
    (DATA, cut), (DATA, flip_a_bit), (DATA, Path.unlink), (DATA, lambda path: path.write_bytes(b"")),
    (META, cut), (META, alter_a_fact), (META, Path.unlink),
    *((META, lambda path, data=data: path.write_bytes(data)) for data in (b"", b"null", b"[]", b"{}", b"\xff{")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil"), FAULTS)
def test_a_truncated_or_altered_artifact_is_computed_again(store, tmp_path, name, spoil):
    key = get(store)[0].key
    spoil(tmp_path / "artifacts" / "reward_scores" / key / name)
    with pytest.warns(StoreWarning, match=rf"{key}: truncated or altered \(.*\); computed again"):
        again, made = get(store)
    assert made == 1
    assert again.meta == FACTS
    assert get(store)[1] == 0, "the new artifact is stored"


def full_disk(path, data, *_, **__):
    """Write half of the data, then fail for lack of space."""
    with path.open("wb") as file:
        file.write(data[: len(data) // 2] if isinstance(data, bytes) else data.encode()[: len(data) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["write_bytes", "write_text"])
def test_a_full_disk_leaves_no_partial_artifact(store, tmp_path, monkeypatch, writer):
    with monkeypatch.context() as patch:
        patch.setattr(Path, writer, full_disk)
        with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
            get(store, forwards=None)
    assert files(tmp_path) == set()
    assert get(store)[1] == 1
    assert get(store)[1] == 0


def test_metadata_that_is_not_json_leaves_no_partial_artifact(store, tmp_path):
    with pytest.raises(TypeError):
        store.get("x", {}, lambda: ({}, {"fact": object()}))
    assert files(tmp_path) == set()


def test_without_file_locks_two_runs_may_store_the_same_artifact(store, tmp_path, monkeypatch):
    """Both compute it; the first stores it, and the equal result of the second is dropped without a warning."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)

    def make():
        get(Store(tmp_path / "artifacts", store.forward_counter))
        return dict(TENSORS), dict(FACTS)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = store.get("reward_scores", MADE_OF, make)
    assert files(tmp_path / "artifacts") == {f"reward_scores/{result.key}/{n}" for n in (META, DATA)}
    assert get(store)[1] == 0


def test_a_folder_that_cannot_be_created_is_reported_as_a_storage_error(tmp_path):
    (tmp_path / "artifacts").write_text("a file")
    with pytest.raises(StorageError, match="choose another folder"):
        get(Store(tmp_path / "artifacts", ForwardCounter(tmp_path / "ledger.json", resume=False)))


def test_atomic_file_replaces_the_file_or_leaves_it_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(StorageError, match="No space left"):
            write_json(path, {"a": 2})
    with pytest.raises(UnicodeEncodeError), atomic_file(path) as temporary, temporary.open("w", encoding="ascii") as file:
        print("half", "\N{SNOWMAN}", file=file)
    assert files(tmp_path) == {"deep/x.json"}
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": 3}


def test_atomic_file_in_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="choose another folder"), atomic_file(tmp_path / "taken" / "x"):
        pytest.fail("the block must not run")


def test_forward_passes_are_counted_for_computed_artifacts_only(store):
    for _ in range(2):
        get(store)
        get(store, {"scorer": "other"}, forwards=("store/reward_forwards", 5))
        get(store, kind="cost_scores", forwards=("store/cost_forwards", 3))
    assert store.forward_counter.total("store/reward_forwards") == 12
    assert store.forward_counter.total("store/cost_forwards") == 3
    assert store.forward_counter.total("store/reference_forwards") == 0


def test_a_resumed_run_reports_the_counts_of_an_uninterrupted_one(tmp_path):
    """Killed after the first artifact; the resumed run reads it from the store, and still counts it once as its own."""
    get(Store(tmp_path / "a", ForwardCounter(tmp_path / "ledger.json", resume=False)))
    ledger = ForwardCounter(tmp_path / "ledger.json", resume=True)
    get(Store(tmp_path / "a", ledger))
    get(Store(tmp_path / "a", ledger), {"scorer": "other"})
    assert ledger.total("store/reward_forwards") == 14
    ledger.record("x", "n", 2)
    ledger.record("x", "n", 2)
    assert ledger.total("n") == 2
    assert ForwardCounter(tmp_path / "ledger.json", resume=False).total("n") == 0, "a new run starts at zero"


def test_versions_are_rotated_and_the_oldest_removed(tmp_path):
    path = tmp_path / "last.ckpt"
    assert newest_version(path) is None
    for number in range(4):
        rotate_versions(path)
        assert newest_version(path) == (tmp_path / "last-1.ckpt" if number else None), (
            "until the new version is written, the previous one is the newest"
        )
        path.write_text(str(number))
        assert newest_version(path) == path
        remove_old_versions(path, 3)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "last.ckpt": "3", "last-1.ckpt": "2", "last-2.ckpt": "1",
    }  # fmt: skip


def test_atomic_folder_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "last.ckpt"
    with atomic_folder(path) as temporary:
        (temporary / "shard").write_text("first")
        assert not path.exists()
    with pytest.raises(FileNotFoundError), atomic_folder(path) as temporary:
        shutil.copy(temporary / "not there", temporary / "shard")
    assert files(tmp_path) == {"last.ckpt/shard"}
    with atomic_folder(path) as temporary:
        (temporary / "shard").write_text("second")
    assert (path / "shard").read_text() == "second"
    assert (tmp_path / "last-1.ckpt" / "shard").read_text() == "first"


def test_holds_does_not_read_the_artifact(store):
    assert not store.holds("reward_scores", MADE_OF)
    get(store)
    assert store.holds("reward_scores", MADE_OF)
    assert not store.holds("cost_scores", MADE_OF)


COMPUTE = """
import sys, time
from pathlib import Path
import torch
from cdpo_lightning.store.artifacts import ForwardCounter, Store
root = Path(sys.argv[1])
def make():
    with (root / "made").open("a") as file:
        file.write("x")
    (root / "making").touch()
    time.sleep(float(sys.argv[2]))
    return {"score": torch.ones(3)}, {}
print(Store(root / "store", ForwardCounter(root / f"ledger-{sys.argv[3]}.json", False)).get("w", {"a": 1}, make, ("n", 3)).key)
"""


def compute(folder: Path, seconds: float, name: str) -> subprocess.Popen:
    command = [sys.executable, "-c", COMPUTE, str(folder), str(seconds), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_runs_started_together_one_computes_the_shared_artifact(tmp_path):
    runs = [compute(tmp_path, 0.5, name) for name in "abc"]
    outputs = [run.communicate() for run in runs]
    assert [errors for _, errors in outputs] == [""] * 3
    assert len({key for key, _ in outputs}) == 1
    assert (tmp_path / "made").read_text() == "x"
    assert len(list(tmp_path.glob("ledger-*.json"))) == 1, "only the run that computed it counts the forward passes"
    assert not list((tmp_path / "store").rglob("*.lock"))


@pytest.mark.slow
def test_kill_9_releases_the_lock_of_an_artifact(tmp_path):
    killed = compute(tmp_path, 600, "killed")
    while not (tmp_path / "making").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    waiting = compute(tmp_path, 0, "waiting")
    killed.kill()
    killed.communicate()
    assert waiting.communicate(timeout=60)[1] == ""
    assert (tmp_path / "made").read_text() == "xx"
    assert (tmp_path / "ledger-waiting.json").exists()
