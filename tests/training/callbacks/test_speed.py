"""The peak memory is that since the last reset."""

import numpy as np
import pytest

from cdpo_lightning.training.callbacks import speed

SIZE = 2**26  # bytes


@pytest.mark.skipif(not speed._PROC.exists(), reason="this system cannot reset the peak")
def test_the_peak_stays_until_it_is_reset():
    speed.reset_peak_memory()
    before = speed.peak_memory_bytes()
    array = np.ones(SIZE, dtype=np.uint8)
    assert speed.peak_memory_bytes() - before > 0.9 * SIZE
    del array
    assert speed.peak_memory_bytes() - before > 0.9 * SIZE, "the peak, not the current use"
    speed.reset_peak_memory()
    assert speed.peak_memory_bytes() - before < 0.5 * SIZE
