"""The peak of memory is that of the time since it was last forgotten."""

import numpy as np
import pytest

from cdpo_lightning.training.callbacks import speed

SIZE = 2**26  # bytes


@pytest.mark.skipif(not speed._OWN.exists(), reason="the system cannot forget a peak")
def test_a_peak_counts_until_it_is_forgotten():
    speed.forget_peak()
    before = speed.peak_bytes()
    held = np.ones(SIZE, dtype=np.uint8)
    assert speed.peak_bytes() - before > 0.9 * SIZE
    del held
    assert speed.peak_bytes() - before > 0.9 * SIZE, "a peak, not what is held now"
    speed.forget_peak()
    assert speed.peak_bytes() - before < 0.5 * SIZE
