"""Damaged files in the store, a full disk, and a file in place of a folder."""

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cdpo_lightning.config import RunConfig
from cdpo_lightning.errors import ConfigError, StorageError
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.pipeline.run import run
from cdpo_lightning.store.artifacts import StoreWarning
from cdpo_lightning.training.callbacks.checkpoint import Checkpoints

Configure = Callable[..., RunConfig]
VARYING = ("run/", "speed/", "store/")


def stable(metrics: Metrics) -> Metrics:
    return {key: value for key, value in metrics.items() if not key.startswith(VARYING) and not key.endswith("wall_seconds")}


@pytest.fixture(scope="module")
def filled(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Metrics]:
    """A run with learned scores and its own store; return its configuration and metrics."""
    own = tmp_path_factory.mktemp("own")
    config = configure(f"artifacts_dir={own}", "policy.epochs=1", "sft.epochs=2", "reward.epochs=1", "cost.epochs=1")
    return config, run(config)


def in_new_folder(config: RunConfig) -> RunConfig:
    return replace(config, run_dir=f"{config.run_dir}-again-{len(list(Path(config.run_dir).parent.iterdir()))}")


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("sft", "cut"),
        pytest.param("cost_scores", "altered", marks=pytest.mark.slow),
        pytest.param("reward", "emptied", marks=pytest.mark.slow),
        pytest.param("reference_logp", "altered", marks=pytest.mark.slow),
    ],
)
def test_damaged_artifacts_are_computed_again(filled: tuple[RunConfig, Metrics], kind: str, damage: str) -> None:
    config, expected = filled
    for file in (Path(config.artifacts_dir) / kind).glob("*/data.safetensors"):
        data = file.read_bytes()
        middle = len(data) // 2
        damaged = {"cut": data[:middle], "emptied": b"", "altered": data[:middle] + b"\xff\xff" + data[middle + 2 :]}
        file.write_bytes(damaged[damage])
    with pytest.warns(StoreWarning, match=rf"{kind}.*computed again"):
        metrics = run(in_new_folder(config))
    assert stable(metrics) == stable(expected)
    assert run(in_new_folder(config))["store/cost_forwards"] == 0, "the store was not repaired"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes each, which has the effect of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_no_space_for_a_checkpoint_is_one_error_and_keeps_the_last_checkpoint(
    filled: tuple[RunConfig, Metrics], configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(in_new_folder(filled[0]), sft=replace(filled[0].sft, lr=1e-3, epochs=3))
    folder, sizes = Path(config.run_dir), []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = Checkpoints.on_train_epoch_end

    def then_fill_the_disk(callback: Checkpoints, trainer: object, module: object) -> None:
        written(callback, trainer, module)
        sizes.append((folder / "checkpoints/sft/last.ckpt").stat().st_size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0] // 2, hard))

    with monkeypatch.context() as patched, largest_file(soft):
        patched.setattr(Checkpoints, "on_train_epoch_end", then_fill_the_disk)
        with pytest.raises(StorageError, match=r"last\.ckpt: .*free some space"):
            run(config)
    assert len(sizes) == 1
    assert (folder / "checkpoints/sft/last.ckpt").stat().st_size == sizes[0]
    assert not list(folder.rglob("*.part"))
    assert not (folder / "metrics.json").exists()
    run(replace(config, resume=True))


@pytest.mark.parametrize("target", ["store", "run", pytest.param("export", marks=pytest.mark.slow)])
def test_no_space_anywhere_else_is_one_error(filled: tuple[RunConfig, Metrics], target: str) -> None:
    config = in_new_folder(filled[0])
    if target == "store":
        config = replace(config, seed=1)
    size = {"store": 2_000, "export": 300_000, "run": 1_500}[target]
    if target == "export":  # the checkpoint is larger than the weights: one is there already
        run(config)
        config = replace(config, resume=True)
    with largest_file(size), pytest.raises(StorageError, match=r"ile too large.*free some"):
        run(config)
    assert not list(Path(config.run_dir).rglob("*.part"))


@pytest.mark.parametrize("key", ["run_dir", "artifacts_dir"])
def test_a_file_in_place_of_a_folder_is_named(filled: tuple[RunConfig, Metrics], tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises((StorageError, ConfigError), match=str(tmp_path / "file")):
        run(replace(in_new_folder(filled[0]), seed=2, **{key: str(tmp_path / "file")}))


def test_metrics_are_written_last(filled: tuple[RunConfig, Metrics]) -> None:
    """A folder with metrics.json holds a complete run."""
    folder = Path(filled[0].run_dir)
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")).keys() == filled[1].keys()
    written = (folder / "metrics.json").stat().st_mtime_ns
    others = [path for path in folder.rglob("*") if path.is_file() and path.name != "metrics.json"]
    assert all(path.stat().st_mtime_ns <= written for path in others)
