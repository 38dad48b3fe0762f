"""SIGTERM, as a cluster sends it before it takes a machine back: in every stage a complete checkpoint at the end of the step."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from cdpo_lightning import launch
from cdpo_lightning.config import RunConfig
from cdpo_lightning.training.callbacks.history import HistoryCallback

SHORT = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=8", "dataset.demonstrations_per_prompt=16",
    "sft.epochs=2", "sft.batch_size=5", "reward.epochs=1", "reward.batch_size=24", "cost.epochs=1", "cost.batch_size=24",
    "policy.epochs=2", "policy.batch_size=12", "policy.refresh=4", "constraint.samples_per_prompt=8", "constraint.update=pi",
    "evaluation.samples_per_prompt=8", "method.baselines=[]", "model.architecture.hidden_size=32", "trainer.log_every_n_steps=2",
    "stages=[sft,reward,cost,policy,evaluate]",
]  # fmt: skip
Configured = Callable[..., RunConfig]


@pytest.fixture
def configured(configuration: Configured) -> Configured:
    def configured(folder: Path) -> RunConfig:
        return configuration(*SHORT, f"run_dir={folder / 'run'}", f"artifacts_dir={folder / 'store'}")

    return configured


def traces(folder: Path) -> dict[str, object]:
    metrics = json.loads((folder / "run/metrics.json").read_text(encoding="utf-8"))
    return {
        "metrics": {k: v for k, v in metrics.items() if not k.startswith(("run/", "speed/")) and not k.endswith("wall_seconds")},
        "history": (folder / "run/history.csv").read_text(encoding="utf-8").splitlines(),
        "weights": (folder / "run/export/cdpo/model.safetensors").read_bytes(),
    }


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Send SIGTERM to this process after these steps of the stages; each is removed when its signal has been sent."""
    steps = {"sft": 5, "reward": 2, "cost": 1, "policy": 9}
    original = HistoryCallback.on_train_batch_end

    def then_terminated(callback: HistoryCallback, trainer: Trainer, *rest: object) -> None:
        original(callback, trainer, *rest)
        if steps.get(callback._stage) == trainer.global_step:
            assert not trainer.is_last_batch, "in the middle of an epoch"
            del steps[callback._stage]
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(HistoryCallback, "on_train_batch_end", then_terminated)
    return steps


@pytest.mark.slow
def test_a_run_terminated_in_every_stage_equals_the_uninterrupted_one(
    configured: Configured, tmp_path: Path, terminated: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, config = dict(terminated), configured(tmp_path / "terminated")
    for stage, step in steps.items():
        with pytest.raises(KeyboardInterrupt):
            launch.run(config)
        folder = "cdpo" if stage == "policy" else stage
        state = torch.load(tmp_path / f"terminated/run/checkpoints/{folder}/last.ckpt", weights_only=True)
        assert state["global_step"] == step, "nothing that was computed is lost"
        config = replace(config, resume=True)
    launch.run(config)
    assert terminated == {}
    launch.run(configured(tmp_path / "whole"))
    expected = traces(tmp_path / "whole")
    for name, result in traces(tmp_path / "terminated").items():
        assert result == expected[name], name
