"""The DPO policy. A fixed lambda and the dual loop differ only in the labels of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning import ranks
from cdpo_lightning.config import PolicyConfig
from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths.preference import anchor_loss, dpo_loss
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.training.data_modules.pair_data import PolicyBatch
from cdpo_lightning.training.modules.learner import Learner
from cdpo_lightning.training.modules.optimization import adamw, cosine_to

# Largest mean |log-ratio| before the first step, nats, to allow for rounding: bf16 has 8 bits, and a response a hundred tokens.
_STEP_0_TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 1.0, "bf16-true": 1.0}


class PolicyModule(Learner):
    """Minimises the preference loss on the labels of the batch [C-DPO, Eq. 13]."""

    def __init__(self, model: nn.Module, config: PolicyConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def training_step(self, batch: PolicyBatch, _: int) -> Tensor:
        """Return the loss of the batch, in nats for `sigmoid`, plus the anchor's term if it is on."""
        logp = response_logp(self.model, batch.rows)
        log_ratio = (logp - batch.reference_logp)[batch.pair]
        if self.global_step == 0:
            self._check_step_0(log_ratio.detach(), batch.temperature)
        loss = self.preference_loss(log_ratio, batch.target, batch.temperature) * batch.weight
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(loss.detach(), logp.detach()[batch.pair], log_ratio.detach(), batch)
        return loss if batch.anchor_rows is None else loss + self._anchor(batch)

    def preference_loss(self, log_ratio: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Return the mean loss of pairs with log-ratios [B, 2] and labels [B], nats for `sigmoid`."""
        c = self.config
        return dpo_loss(log_ratio[:, 0], log_ratio[:, 1], target, temperature, c.loss, c.label_smoothing).mean()

    def _anchor(self, batch: PolicyBatch) -> Tensor:
        assert batch.anchor_rows is not None
        assert batch.anchor_weight is not None
        logp = response_logp(self.model, batch.anchor_rows)
        return self.config.anchor * anchor_loss(logp, batch.anchor_weight) * batch.anchor_share

    def _check_step_0(self, log_ratio: Tensor, temperature: float) -> None:
        """Raise an error unless policy and reference agree before the first step, up to rounding, so that the loss is ln 2.

        Raises:
            NumericsError: they differ.
        """
        error = float(log_ratio.abs().mean())
        if not error <= _STEP_0_TOLERANCE[str(self.trainer.precision)]:
            loss = float(self.preference_loss(log_ratio, torch.full_like(log_ratio[:, 0], 0.5), temperature))
            raise NumericsError(
                f"step 0: policy and reference differ by {error:.3g} nats a response (loss {loss:.4f}, expected ln 2 = 0.6931); "
                "the reference's log-probabilities are of other weights, another template or another precision"
            )

    def _log(self, loss: Tensor, logp: Tensor, log_ratio: Tensor, batch: PolicyBatch) -> None:
        """Log means over the batch of all ranks; the current label decides which response is chosen."""
        first, weight = batch.target[:, None].gt(0.5).long(), batch.weight
        chosen, rejected = (lambda v: v.gather(1, first).mean() * weight), (lambda v: v.gather(1, 1 - first).mean() * weight)
        reward = self.config.beta * log_ratio
        self.log_dict(
            {
                "loss": loss,
                "logp/chosen": chosen(logp),
                "logp/rejected": rejected(logp),
                "implicit_reward/chosen": chosen(reward),
                "implicit_reward/rejected": rejected(reward),
            },
            sync_dist=ranks.world_size() > 1,
        )

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """Return AdamW, with a learning rate along a cosine over the epochs."""
        c = self.config
        return adamw(self.model, c.lr, c.weight_decay, cosine_to(c.epochs, c.lr_final), "epoch")
