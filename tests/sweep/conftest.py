"""What the tests of sweeps share with the others: a configuration by overrides, and made-up sweeps."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import configuration
from tests.report.synthetic import write_sweep

__all__ = ["configuration"]


@pytest.fixture
def make_sweep() -> Callable[[Path], None]:
    """Two made-up runs in a folder."""
    return lambda folder: write_sweep(folder, 2) and None
