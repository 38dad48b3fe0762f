"""Supervised fine-tuning: the token-mean negative log-likelihood of the responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning import ranks
from cdpo_lightning.config import FitConfig
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.text.packing import PackedRows
from cdpo_lightning.training.modules.learner import Learner
from cdpo_lightning.training.modules.optimization import adamw, linear_warmup_decay


@dataclass(frozen=True)
class SFTBatch:
    """Demonstrations as packed rows."""

    rows: PackedRows
    weight: float = 1.0  # of the mean loss over these tokens: this rank's share of the batch, times the number of ranks

    def to(self, device: torch.device | str, **_: Any) -> SFTBatch:
        """Return the batch on `device`."""
        return SFTBatch(self.rows.to(device), self.weight)


class SFTModule(Learner):
    """Trains a model on the demonstrations."""

    def __init__(self, model: nn.Module, config: FitConfig, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps

    def training_step(self, batch: SFTBatch, _: int) -> Tensor:
        """Return the mean negative log-likelihood, nats per response token."""
        loss = -response_logp(self.model, batch.rows).sum() / len(batch.rows.target_N) * batch.weight
        self.log("loss", loss, sync_dist=ranks.world_size() > 1)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """Return AdamW with a linear warm-up and decay."""
        factor = linear_warmup_decay(self.steps, self.config.warmup)
        return adamw(self.model, self.config.lr, self.config.weight_decay, factor, "step")
