"""The cost model [C-DPO, Eq. 5]."""

from __future__ import annotations

from torch import Tensor

from cdpo_lightning.maths.score_losses import cost_model_loss
from cdpo_lightning.training.modules.score import ScoreBatch, ScoreModule


class CostModule(ScoreModule):
    """Trains a score model to give the more harmful response the higher score, and unsafe responses a score above zero."""

    def loss(self, score: Tensor, batch: ScoreBatch) -> Tensor:
        """Return the mean Bradley-Terry loss over the pairs plus twice the mean sign loss, nats."""
        return cost_model_loss(score, batch.pairs, batch.sign, batch.pair_weight, batch.sign_weight)
