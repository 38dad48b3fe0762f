"""PPO-Lagrangian: the actor, a critic for the reward and one for each constraint, under one optimizer."""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True)
class PPOBatch:
    """Episodes as rows and, for each of their N tokens, the constants of the round; demonstrations for the ptx term, if on."""

    rows: PackedRows
    old_logp: Tensor
    advantage: Tensor
    old_values_VN: Tensor  # of every critic: the reward's, then one for each constraint
    returns_VN: Tensor
    demonstrations: PackedRows | None = None

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that are read with a gradient, summed over the actor and the critics."""
        episodes = (1 + len(self.old_values_VN)) * self.rows.tokens
        return episodes + (self.demonstrations.tokens if self.demonstrations is not None else 0)

    def to(self, device: torch.device | str, **_: Any) -> PPOBatch:
        """Return the batch on `device`."""
        return PPOBatch(**{k: v if v is None else v.to(device) for k, v in vars(self).items()})


class PPOModule(Learner):
    """Minimises the clipped policy loss, all clipped value losses and the demonstrations' negative log-likelihood [SafeRLHF]."""

    def __init__(self, model: nn.Module, critics: Mapping[str, ValueModel], config: PPOConfig) -> None:
        super().__init__()
        self.model, self.config, self.critic_names = model, config, tuple(critics)
        for name, critic in critics.items():
            self.add_module(f"{name}_critic", critic)

    @property
    def critics(self) -> dict[str, nn.Module]:
        """The critics by the name of their score: `reward`, then the constraints."""
        return {name: self.get_submodule(f"{name}_critic") for name in self.critic_names}

    def training_step(self, batch: PPOBatch, _: int) -> Tensor:
        """Return the sum of all losses; the networks share no weights, so each gets the gradient of its own loss."""
        c = self.config
        logp = response_token_logp(self.model, batch.rows)
        losses = {"loss/policy": clipped_policy_loss(logp, batch.old_logp, batch.advantage, c.clip)}
        constants = zip(batch.old_values_VN, batch.returns_VN, strict=True)
        for (name, critic), (old_value, returns) in zip(self.critics.items(), constants, strict=True):
            losses[f"loss/{name}_value"] = clipped_value_loss(critic(batch.rows), old_value, returns, c.value_clip)
        if batch.demonstrations is not None:
            tokens = len(batch.demonstrations.target_N)
            losses["loss/ptx"] = -c.ptx * response_logp(self.model, batch.demonstrations).sum() / tokens
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict({name: loss.detach() for name, loss in losses.items()})
        return torch.stack(list(losses.values())).sum()

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """Return one AdamW with a group for the actor and one for each critic; learning rates follow a cosine over the rounds."""
        c = self.config
        groups = [(self.model, c.lr), *((critic, c.critic_lr) for critic in self.critics.values())]
        return adamw_groups(groups, 0.0, cosine_to(c.rounds, c.lr_final), "epoch")
