"""The reward model [C-DPO, Eq. 3]."""

from __future__ import annotations

from torch import Tensor

from cdpo_lightning.maths.score_losses import reward_model_loss
from cdpo_lightning.training.modules.score import ScoreBatch, ScoreModule


class RewardModule(ScoreModule):
    """Trains a score model to give the preferred response the higher score."""

    def loss(self, score: Tensor, batch: ScoreBatch) -> Tensor:
        """Return the mean Bradley-Terry loss over the pairs, nats."""
        return reward_model_loss(score, batch.pairs) * batch.pair_weight
