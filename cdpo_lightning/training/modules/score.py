"""The Lightning module that reward model and cost model share; a subclass adds the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdpo_lightning import ranks
from cdpo_lightning.config import FitConfig
from cdpo_lightning.models.heads.score_model import ScoreModel
from cdpo_lightning.training.modules.learner import Learner
from cdpo_lightning.training.modules.optimization import adamw, linear_warmup_decay


@dataclass(frozen=True)
class ScoreBatch:
    """Responses [N] with their prompts, pairs [P, 2] (the preferred first) and signs [N] (+1 unsafe, -1 safe, 0 unknown)."""

    input_ids: Tensor
    attention_mask: Tensor
    pairs: Tensor
    sign: Tensor
    pair_weight: float = 1.0  # of the mean loss over these pairs: this rank's share of the batch, times the number of ranks
    sign_weight: float = 1.0  # the same for the signed responses

    def to(self, device: torch.device | str, **_: Any) -> ScoreBatch:
        """Return the batch on `device`."""
        return ScoreBatch(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()})


class ScoreModule(Learner, ABC):
    """Trains a score model; a subclass defines the loss."""

    def __init__(self, model: ScoreModel, config: FitConfig, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps

    @abstractmethod
    def loss(self, score: Tensor, batch: ScoreBatch) -> Tensor:
        """Return the scalar loss of the scores [N], nats; its average over the ranks is the loss of the whole batch."""

    def training_step(self, batch: ScoreBatch, _: int) -> Tensor:
        """Return the loss of the batch, nats."""
        loss = self.loss(self.model(batch.input_ids, batch.attention_mask), batch)
        self.log("loss", loss, sync_dist=ranks.world_size() > 1)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """Return AdamW with a linear warm-up and decay."""
        factor = linear_warmup_decay(self.steps, self.config.warmup)
        return adamw(self.model, self.config.lr, self.config.weight_decay, factor, "step")
