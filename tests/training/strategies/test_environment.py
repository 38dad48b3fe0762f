"""Lightning gets our cluster environment in every run, also in a single process, whatever launchers the machine has."""

import os
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from cdpo_lightning.config import TrainerConfig
from cdpo_lightning.store.history import History
from cdpo_lightning.training.fit import FitSettings, FitStage, fit
from cdpo_lightning.training.strategies.environment import RunningRanks


class Line(L.LightningModule):
    """y = w x, fitted to y = 2 x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Linear(1, 1, bias=False)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.w(batch) - 2 * batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Points(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(4, 1), batch_size=2)


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub of Slurm's `srun` on PATH, outside of a Slurm job."""
    stub = tmp_path / "bin" / "srun"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("srun")
def test_srun_on_path_causes_no_warning(tmp_path: Path) -> None:
    settings = FitSettings(TrainerConfig(accelerator="cpu"), History(tmp_path / "history.csv", False), tmp_path, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*does not have many workers")  # as in setup.cfg
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        trainer = fit(Line(), Points(), FitStage("line", 1, tmp_path), settings)
    assert trainer.global_step == 2
    assert isinstance(trainer._accelerator_connector.cluster_environment, RunningRanks)


@pytest.mark.usefixtures("srun")
def test_the_stub_of_srun_makes_lightning_warn_by_default() -> None:
    """The counterexample: with Lightning's own choice of cluster environment."""
    with pytest.warns(UserWarning, match="srun"):
        L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
