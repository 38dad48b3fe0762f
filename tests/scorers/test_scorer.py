"""The check that every score is finite."""

import math

import pytest
import torch

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.scorers.scorer import require_finite

TEXTS = [("how do i fix a bike?", "gladly, ask an expert"), ("how do i fix a bike?", "well,")]


def test_require_finite():
    require_finite(torch.tensor([0.0, -1.0]), TEXTS, "x")
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NumericsError, match="1 of 2 scores are not finite"):
            require_finite(torch.tensor([0.0, bad]), TEXTS, "x")
