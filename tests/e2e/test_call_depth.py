"""How far the loss lies from the command line: few files to read from run.py to the equation."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

import cdpo_lightning
from cdpo_lightning import launch
from cdpo_lightning.config import RunConfig
from cdpo_lightning.maths import preference

PACKAGE = Path(cdpo_lightning.__file__).parent
MOST_FILES = 6


def test_the_policy_loss_lies_at_most_six_files_below_run_py(
    configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the package, in the call stack of a training step; run.py calls `launch.run`."""
    loss, files = preference.dpo_loss, set[str]()

    def recorded(*args: object, **options: object) -> Tensor:
        names = {Path(frame.filename) for frame in traceback.extract_stack()}
        files.update(name.relative_to(PACKAGE).as_posix() for name in names if name.is_relative_to(PACKAGE))
        return loss(*args, **options)

    for module in [module for name, module in sys.modules.items() if name.startswith("cdpo_lightning")]:
        if vars(module).get("dpo_loss") is loss:
            monkeypatch.setattr(module, "dpo_loss", recorded)
    launch.run(configure("dataset.scores=oracle", "policy.epochs=1", "stages=[sft,policy]"))
    assert files, "the training did not call dpo_loss"
    files.add(Path(preference.__file__).relative_to(PACKAGE).as_posix())
    assert len(files) <= MOST_FILES, sorted(files)
