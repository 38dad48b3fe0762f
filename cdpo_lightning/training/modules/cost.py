"""The cost model [C-DPO, Eq. 5]."""

from __future__ import annotations

from torch import Tensor

from cdpo_lightning.maths.score_losses import cost_model_loss
from cdpo_lightning.training.modules.score import ScoreBatch, ScoreModule


class CostModule(ScoreModule):
    """The more harmful response scores higher, and unsafe ones score above zero."""

    def loss(self, score: Tensor, batch: ScoreBatch) -> Tensor:
        """Mean Bradley-Terry loss over the pairs plus the sign loss, nats."""
        return cost_model_loss(score, batch.pairs, batch.sign, batch.pair_weight, batch.sign_weight)
