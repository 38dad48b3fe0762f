"""A run that was interrupted and resumed equals the uninterrupted run: same weights, same metrics, same history."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from cdpo_lightning.config import RunConfig
from cdpo_lightning.data.batching import LengthBuckets
from cdpo_lightning.errors import ConfigError, StorageError
from cdpo_lightning.pipeline.run import run
from cdpo_lightning.training.callbacks.history import HistoryCallback

VARYING = ("run/command", "run/git_commit", "speed/")
SHORT = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=8", "dataset.demonstrations_per_prompt=16",
    "sft.epochs=3", "sft.batch_size=8", "reward.epochs=2", "cost.epochs=2", "policy.epochs=3", "policy.refresh=4",
    "policy.refresh_window=2", "constraint.samples_per_prompt=8", "constraint.update=pi", "constraint.c_limit=-0.5",
    "evaluation.samples_per_prompt=8", "method.baselines=[dpo]", "model.architecture.hidden_size=32",
    "stages=[sft,reward,cost,policy,evaluate]",
]  # fmt: skip


Configured = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def configured(configuration: Callable[..., RunConfig]) -> Configured:
    """Return the configuration of a run whose run_dir and artifacts_dir are in this folder."""

    def configured(folder: Path, *overrides: str) -> RunConfig:
        folders = [f"run_dir={folder / 'run'}", f"artifacts_dir={folder / 'store'}"]
        return configuration(*SHORT, *folders, *overrides)

    return configured


def traces(folder: Path) -> dict[str, object]:
    """Return the outputs of a run that must not depend on interruptions."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {
        "metrics": {
            key: value for key, value in metrics.items() if not key.startswith(VARYING) and not key.endswith("wall_seconds")
        },
        "history": (folder / "history.csv").read_text(encoding="utf-8").splitlines(),
        "samples": (folder / "samples.jsonl").read_text(encoding="utf-8"),
        "weights": {who: (folder / "export" / who / "model.safetensors").read_bytes() for who in ("dpo", "cdpo")},
    }


@pytest.fixture(scope="module")
def uninterrupted(configured: Configured, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(configured(folder))
    return traces(folder / "run")


Epoch = tuple[str, str, int]  # stage, who, epoch


class Interrupt:
    """Raise KeyboardInterrupt in the last step of epoch `at`, before its checkpoint; `trained` has the epochs so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: Epoch | None = None
        self.trained: list[Epoch] = []
        original = HistoryCallback.on_train_batch_end

        def interrupted(callback: HistoryCallback, trainer: Trainer, *args: object) -> None:
            original(callback, trainer, *args)
            if trainer.is_last_batch:
                self.trained.append((callback._stage, callback._who, trainer.current_epoch))
                if self.trained[-1] == self.at:
                    raise KeyboardInterrupt

        monkeypatch.setattr(HistoryCallback, "on_train_batch_end", interrupted)


@pytest.mark.slow
def test_a_run_interrupted_in_every_stage_equals_the_uninterrupted_one(
    uninterrupted: dict[str, object], configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = Interrupt(monkeypatch)
    config = configured(tmp_path)
    interrupted: list[Epoch] = [("sft", "", 0), ("sft", "", 2), ("reward", "", 1), ("cost", "", 1)]
    interrupted += [("policy", "dpo", 1), ("policy", "cdpo", 0), ("policy", "cdpo", 1), ("policy", "cdpo", 2)]
    for epoch in interrupted:
        interrupt.at = epoch
        with pytest.raises(KeyboardInterrupt):
            run(config)
        assert not (tmp_path / "run" / "metrics.json").exists()
        config = replace(config, resume=True)
    interrupt.at = None
    run(config)
    epochs = [("sft", "", 3), ("reward", "", 2), ("cost", "", 2), ("policy", "dpo", 3), ("policy", "cdpo", 3)]
    whole = [(stage, who, epoch) for stage, who, count in epochs for epoch in range(count)]
    assert interrupt.trained == sorted([*whole, *interrupted], key=whole.index), "only the lost epochs are repeated"
    result = traces(tmp_path / "run")
    for name, expected in uninterrupted.items():
        assert result[name] == expected, name
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_run_interrupted_in_the_evaluation_and_a_finished_run_can_be_resumed(
    uninterrupted: dict[str, object], configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("cdpo_lightning.pipeline.run.evaluate_by_samples", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    for _ in range(2):
        run(replace(config, resume=True))
        assert traces(tmp_path / "run") == uninterrupted


def test_ctrl_c_still_works_after_a_stage_was_interrupted(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning ignores SIGINT after the first one; the handler from before must be restored."""
    before = signal.getsignal(signal.SIGINT)
    Interrupt(monkeypatch).at = ("sft", "", 0)
    with pytest.raises(KeyboardInterrupt):
        run(configured(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_between_two_epochs_is_raised(configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own handling of the interrupt fails there."""
    before, original, begun = signal.getsignal(signal.SIGINT), LengthBuckets.__iter__, []

    def interrupted(order: LengthBuckets) -> Iterator[list[int]]:
        begun.append(order)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return original(order)

    monkeypatch.setattr(LengthBuckets, "__iter__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(configured(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before


def test_the_folder_of_another_run_is_refused(configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Interrupt(monkeypatch).at = ("sft", "", 0)
    config = configured(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    kept = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"run_dir=.*resume=true"):
        run(config)
    with pytest.raises(ConfigError, match=r"run_dir=.*another configuration"):
        run(configured(tmp_path, "policy.beta=0.3", "resume=true"))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == kept


def test_resuming_without_anything_to_resume_is_refused(configured: Configured, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resume=true: .*run_dir="):
        run(configured(tmp_path, "resume=true"))
    dated = f"run_dir={tmp_path}/2026-01-02_03-04-05"
    with pytest.raises(ConfigError, match=r"resume=true: .*configuration"):
        run(configured(tmp_path, "resume=true", dated))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_resume_selects_the_newest_dated_folder_of_the_same_configuration(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command on another day, with resume=true."""
    interrupt = Interrupt(monkeypatch)
    interrupt.at = ("sft", "", 0)
    for day, beta in ((1, 0.5), (2, 0.5), (3, 0.3)):
        with pytest.raises(KeyboardInterrupt):
            run(configured(tmp_path, f"run_dir={tmp_path}/runs/2026-01-0{day}_00-00-00", f"policy.beta={beta}", "stages=[sft]"))
    interrupt.at = None
    run(configured(tmp_path, f"run_dir={tmp_path}/runs/2026-01-09_00-00-00", "resume=true", "stages=[sft]"))
    assert [path.parent.name for path in (tmp_path / "runs").glob("*/metrics.json")] == ["2026-01-02_00-00-00"]


@pytest.fixture
def interrupted(configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return the configuration of a run interrupted after an epoch of SFT; resumed, it is interrupted again."""
    Interrupt(monkeypatch).at = ("sft", "", 1)
    config = configured(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    return config


def test_a_truncated_checkpoint_is_refused_and_named(interrupted: RunConfig, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoints/sft/last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(StorageError, match=r"last\.ckpt: .*remove it"):
        run(replace(interrupted, resume=True))


def test_temporary_files_of_a_killed_process_are_removed(interrupted: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints/.last.ckpt.1a2b3c4d.part").write_bytes(b"half")
    (tmp_path / "run/.cdpo.1a2b3c4d.part").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(replace(interrupted, resume=True))
    assert not list((tmp_path / "run").rglob("*.part"))


Start = Callable[..., Any]  # conftest.py: a folder and overrides; what it returns is used like subprocess.Popen


@pytest.fixture
def begin(start: Start) -> Start:
    """Start a run in a folder, in a process of its own: `begin(folder, *overrides)`."""

    def begun(folder: Path, *overrides: str) -> Any:
        folders = [f"run_dir={folder / 'run'}", f"artifacts_dir={folder / 'store'}"]
        return start(folder, *SHORT, "trainer.num_threads=1", *folders, *overrides)

    return begun


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_the_uninterrupted_one(begin: Start, tmp_path: Path) -> None:
    """SIGKILL at the start, in SFT and in both policies, each after a random delay; then resumed to the end."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = begin(whole)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    rng = random.Random(os.urandom(8))
    moments = ["identity", "checkpoints/sft/last.ckpt", "checkpoints/dpo/last.ckpt", "checkpoints/cdpo/last.ckpt"]
    delays = [rng.uniform(0, 0.2) for _ in moments]
    for number, (moment, delay) in enumerate(zip(moments, delays, strict=True)):
        process = begin(killed, *(["resume=true"] if number else []))
        process.wait_for(killed / "run" / moment)
        time.sleep(delay)
        process.kill()
        process.communicate()
    process = begin(killed, "resume=true")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert traces(killed / "run") == traces(whole / "run"), f"killed {delays} s after {moments}"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_names_resume_and_exits_with_130(begin: Start, tmp_path: Path, how: signal.Signals) -> None:
    process = begin(tmp_path, "sft.epochs=500")
    process.wait_for(tmp_path / "run/checkpoints/sft/last.ckpt")
    process.send_signal(how)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert re.match("interrupted: .*resume=true", errors.splitlines()[-1])
    assert "Traceback" not in errors
    assert (tmp_path / "run/checkpoints/sft/last.ckpt").exists()
