"""What a preference method fits: its labels, its temperature, and what its optimum weighs the reference with.

Every objective here has the optimum `reference * exp(utility / beta)`, so that methods differ in these few functions alone. The
reference is the pair table's: pi_ref, or pi_rhat in the second stage of PD-DPO. M pairs; lambda in reward per cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cdpo_lightning.data.pairs.pair_table import PairTable
from cdpo_lightning.maths.preference import lagrangian_reward, preference_probability, preference_target
from cdpo_lightning.maths.primal_dual import temperature


class Objective(Protocol):
    """What the loss is given, as functions of lambda."""

    @property
    def relabels(self) -> bool:
        """Whether labels change with lambda."""
        ...

    def target(self, table: PairTable, lam: float) -> Tensor:
        """The label of each pair, [M]: the (probability of the) preference for response_1."""
        ...

    def utility(self, reward: Tensor, cost: Tensor, lam: float) -> Tensor:
        """What the optimum weighs the table's reference with, reward units, shape as given."""
        ...

    def temperature(self, lam: float) -> float:
        """The factor of the log-ratio in the loss, units of the label's logit per nat."""
        ...


@dataclass(frozen=True)
class LagrangianPreference:
    """Preferences under r - lambda c [C-DPO, Eq. 12-13]; at lambda = 0 plain DPO on the reward."""

    beta: float
    labels: str
    relabels: bool = True

    def target(self, table: PairTable, lam: float) -> Tensor:
        """The label of each pair, [M] [C-DPO, Eq. 12]."""
        return table.target(lam, self.labels)

    def utility(self, reward: Tensor, cost: Tensor, lam: float) -> Tensor:
        """r - lambda c."""
        return lagrangian_reward(reward, cost, lam)

    def temperature(self, lam: float) -> float:
        """beta, whatever lambda."""
        return self.beta


@dataclass(frozen=True)
class CostPreference:
    """The safer response is preferred, at temperature beta / lambda, against pi_rhat [PD-DPO's second stage; SACPO]."""

    beta: float
    labels: str
    relabels: bool = False

    def target(self, table: PairTable, lam: float) -> Tensor:
        """P(response_1 safer) = sigma(c(0) - c(1)), [M], or one draw of it."""
        first, second = (-table.cost_N)[table.pair_M2].unbind(1)
        other_draw = table.draw_M * 2**20 % 1  # its lower bits: independent of the upper ones, which the reward's label took
        return preference_target(preference_probability(first, second), other_draw, self.labels)

    def utility(self, reward: Tensor, cost: Tensor, lam: float) -> Tensor:
        """-lambda c: the reward is in pi_rhat."""
        return lagrangian_reward(torch.zeros_like(reward), cost, lam)

    def temperature(self, lam: float) -> float:
        """beta / lambda, bounded where lambda is near 0."""
        return temperature(self.beta, lam)


@dataclass(frozen=True)
class FixedLabels:
    """Another objective on labels that do not come from scores: people's, or safety first."""

    objective: Objective
    label_M: Tensor
    relabels: bool = False

    def target(self, table: PairTable, lam: float) -> Tensor:
        """The labels as given, [M]."""
        assert len(table) == len(self.label_M), "pairs without a label were added"
        return self.label_M

    def utility(self, reward: Tensor, cost: Tensor, lam: float) -> Tensor:
        """That of the other objective."""
        return self.objective.utility(reward, cost, lam)

    def temperature(self, lam: float) -> float:
        """That of the other objective."""
        return self.objective.temperature(lam)
