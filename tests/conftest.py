"""Settings of every test: no network, one thread, fixed seeds, and the folder of real data if there is one."""

import os

# Set before the import of torch and of the libraries that read them; child processes inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    MPLBACKEND="Agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# The models are tiny: a second thread costs more time than it saves. One thread also fixes the order of summation.
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# The same examples in every run; no deadline, because torch's first call is slow. For new examples: HYPOTHESIS_PROFILE=search.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the libraries under test draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real data: $CDPO_DATA, else ../shared/data relative to the checkout. It is not part of the project."""
    folder = Path(os.environ.get("CDPO_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; set CDPO_DATA to one that holds pku_saferlhf_pairs.jsonl")
    return folder


@pytest.fixture
def rows_run():
    """Return a function that calls another and counts the rows that go through a model in the meantime."""

    def run(model, function):
        seen = []

        def count(_, args, kwargs, __):
            seen.append(len((*args, *kwargs.values())[0]))

        hook = model.register_forward_hook(count, with_kwargs=True)
        result = function()
        hook.remove()
        return result, sum(seen)

    return run
