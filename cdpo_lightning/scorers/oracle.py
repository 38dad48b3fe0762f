"""The true scores of the closed-form world as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdpo_lightning.data.world.closed_form import World
from cdpo_lightning.scorers.scorer import Text


@dataclass(frozen=True)
class OracleScorer:
    """The true reward or cost of the closed-form world."""

    world: World
    name: str  # reward or cost
    identity: str

    def score(self, texts: Sequence[Text]) -> Tensor:
        """Return true values [N], float64."""
        return torch.tensor([self.world.score(self.name, *text) for text in texts], dtype=torch.float64)
