"""A run small enough for a test: eight prompts, sixteen responses, a fine-tuned model that stays inside the grammar."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cdpo_lightning.config import RunConfig, parse

ROOT = Path(__file__).resolve().parent.parent.parent
GROUPS = ("model", "dataset", "constraint", "method", "trainer", "logger")
TINY = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=16", "dataset.demonstrations_per_prompt=32",
    "sft.epochs=12", "sft.batch_size=8", "sft.lr=2e-2", "reward.epochs=2", "cost.epochs=8",
    "policy.epochs=2", "policy.refresh=4", "constraint.samples_per_prompt=8", "evaluation.samples_per_prompt=8",
    "method.baselines=[]", "stages=[sft,reward,cost,policy,evaluate]",
]  # fmt: skip


@functools.cache
def _chosen(*choices: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", ["run_dir=here", *choices])


@pytest.fixture(scope="session")
def configuration() -> Callable[..., RunConfig]:
    """The run of these overrides, later ones over earlier ones; a choice of files is composed once for all tests."""

    def parsed(*overrides: str) -> RunConfig:
        choices = [o for o in overrides if o.partition("=")[0] in GROUPS]
        values = OmegaConf.from_dotlist([o for o in overrides if o not in choices])
        return parse(OmegaConf.merge(copy.deepcopy(_chosen(*choices)), values))

    return parsed


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests that do not look at the store itself: fine-tuned once, scored once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def configure(
    store: Path, tmp_path_factory: pytest.TempPathFactory, configuration: Callable[..., RunConfig]
) -> Callable[..., RunConfig]:
    """The tiny run with overrides, each in a folder of its own."""

    def configured(*overrides: str) -> RunConfig:
        folder = tmp_path_factory.mktemp("run") / "run"
        return configuration(*TINY, f"run_dir={folder}", f"artifacts_dir={store}", *overrides)

    return configured
