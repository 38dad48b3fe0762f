"""PPO-Lagrangian: actor, reward critic and cost critic under one optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.config import PPOConfig
from cdpo_lightning.maths.ppo import clipped_policy_loss, clipped_value_loss
from cdpo_lightning.models.heads.value_model import ValueModel
from cdpo_lightning.models.lm.packed_forward import response_logp, response_token_logp
from cdpo_lightning.text.packing import PackedRows
from cdpo_lightning.training.modules.learner import Learner
from cdpo_lightning.training.modules.optimization import adamw_groups, cosine_to

_NETWORKS = 3  # actor and two critics read every token


@dataclass(frozen=True)
class PPOBatch:
    """Episodes as rows and, for each of their N tokens, the constants of the round; demonstrations for the ptx term, if on."""

    rows: PackedRows
    old_logp: Tensor
    advantage: Tensor
    old_value_2N: Tensor  # of the reward and of the cost critic
    returns_2N: Tensor
    demonstrations: PackedRows | None = None

    @property
    def trained_tokens(self) -> int:
        """Tokens that are read with a gradient, summed over the networks."""
        return _NETWORKS * self.rows.tokens + (self.demonstrations.tokens if self.demonstrations is not None else 0)

    def to(self, device: torch.device | str, **_: Any) -> PPOBatch:
        """The same batch on `device`."""
        return PPOBatch(**{k: v if v is None else v.to(device) for k, v in vars(self).items()})


class PPOModule(Learner):
    """Minimises the clipped policy loss, both clipped value losses and the demonstrations' negative log-likelihood [SafeRLHF]."""

    def __init__(self, model: nn.Module, reward_critic: ValueModel, cost_critic: ValueModel, config: PPOConfig) -> None:
        super().__init__()
        self.model, self.reward_critic, self.cost_critic, self.config = model, reward_critic, cost_critic, config

    def training_step(self, batch: PPOBatch, _: int) -> Tensor:
        """The sum of the losses: networks share no weight, so each one's gradient is that of its own."""
        c = self.config
        logp = response_token_logp(self.model, batch.rows)
        losses = {"loss/policy": clipped_policy_loss(logp, batch.old_logp, batch.advantage, c.clip)}
        for location, (name, critic) in enumerate((("reward", self.reward_critic), ("cost", self.cost_critic))):
            value = critic(batch.rows)
            losses[f"loss/{name}_value"] = clipped_value_loss(
                value, batch.old_value_2N[location], batch.returns_2N[location], c.value_clip
            )
        if batch.demonstrations is not None:
            tokens = len(batch.demonstrations.target_N)
            losses["loss/ptx"] = -c.ptx * response_logp(self.model, batch.demonstrations).sum() / tokens
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict({name: loss.detach() for name, loss in losses.items()})
        return torch.stack(list(losses.values())).sum()

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """One AdamW with a group for the actor and one for each critic; learning rates along a cosine over the rounds."""
        c = self.config
        groups = [(self.model, c.lr), (self.reward_critic, c.critic_lr), (self.cost_critic, c.critic_lr)]
        return adamw_groups(groups, 0.0, cosine_to(c.rounds, c.lr_final), "epoch")
