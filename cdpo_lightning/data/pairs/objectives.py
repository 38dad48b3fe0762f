"""The objectives of preference methods: the labels, the temperature of the loss, and the utility of the optimum.

Every objective has the optimum `reference * exp(utility / beta)`, so methods differ in these few functions only. The reference is
that of the pair table: pi_ref, or pi_rhat in the second stage of PD-DPO. M pairs, N responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cdpo_lightning.constraints.constraint import REWARD, Constraint, DualState, Scores, utility, weighted_phi
from cdpo_lightning.data.pairs.pair_table import PairTable
from cdpo_lightning.maths.preference import preference_probability, preference_target
from cdpo_lightning.maths.primal_dual import temperature


class Objective(Protocol):
    """The inputs of the loss, as functions of the multipliers."""

    @property
    def relabels(self) -> bool:
        """Whether labels change with the multipliers."""
        ...

    def target(self, table: PairTable, dual: DualState) -> Tensor:
        """Return the label of each pair, [M]: the probability that response_1 is preferred."""
        ...

    def utility(self, scores: Scores, prompt: Tensor, dual: DualState) -> Tensor:
        """Return the utility u of the optimum reference * exp(u / beta), reward units, the shape of the scores."""
        ...

    def temperature(self, dual: DualState) -> float:
        """Return the factor of the log-ratio in the loss, units of the label's logit per nat."""
        ...


@dataclass(frozen=True)
class LagrangianPreference:
    """Preferences under r - sum_k lambda_k phi_k [C-DPO, Eq. 12-13]; at lambda = 0 plain DPO on the reward."""

    beta: float
    labels: str
    constraints: Sequence[Constraint] = ()
    relabels: bool = True

    def target(self, table: PairTable, dual: DualState) -> Tensor:
        """Return the label of each pair, [M] [C-DPO, Eq. 12]."""
        return table.target(self.utility(table.scores, table.prompt_N, dual), self.labels)

    def utility(self, scores: Scores, prompt: Tensor, dual: DualState) -> Tensor:
        """Return r - sum_k lambda_k phi_k."""
        return utility(scores, self.constraints, dual, prompt)

    def temperature(self, dual: DualState) -> float:
        """Return beta, which does not depend on the multipliers."""
        return self.beta


@dataclass(frozen=True)
class CostPreference:
    """The safer response is preferred, at temperature beta / lambda, against pi_rhat [PD-DPO's second stage; SACPO].

    With several constraints (ours) the costs are averaged with their multipliers as weights, and lambda is the multipliers' sum.
    """

    beta: float
    labels: str
    constraints: Sequence[Constraint]

    @property
    def relabels(self) -> bool:
        """Whether labels change with the multipliers: with several constraints, whose weights do."""
        return len(self.constraints) > 1

    def target(self, table: PairTable, dual: DualState) -> Tensor:
        """Return P(response_1 safer) = sigma(c(0) - c(1)), [M], or one draw of it."""
        first, second = self._safety(table, dual)[table.pair_M2].unbind(1)
        other_draw = table.draw_M * 2**20 % 1  # the lower bits, independent of the upper ones, which decide the reward labels
        return preference_target(preference_probability(first, second), other_draw, self.labels)

    def _safety(self, table: PairTable, dual: DualState) -> Tensor:
        """Return minus the weighted cost of every response, [N]."""
        total = self._total(dual)
        share = {c.name: dual.lam[c.name] / total if total > 0 else 1 / len(self.constraints) for c in self.constraints}
        costs = [share[c.name] * weighted_phi(table.scores, c, dual, table.prompt_N) for c in self.constraints]
        return -torch.stack(costs).sum(0)

    def _total(self, dual: DualState) -> float:
        return sum(dual.lam[c.name] for c in self.constraints)

    def utility(self, scores: Scores, prompt: Tensor, dual: DualState) -> Tensor:
        """Return -sum_k lambda_k phi_k, without the reward, because the table's reference is pi_rhat."""
        return utility({**scores, REWARD: torch.zeros_like(scores[REWARD])}, self.constraints, dual, prompt)

    def temperature(self, dual: DualState) -> float:
        """Return beta / lambda, bounded for lambda near 0 (see `maths.primal_dual.temperature`)."""
        return temperature(self.beta, self._total(dual))


@dataclass(frozen=True)
class FixedLabels:
    """Another objective with fixed labels in place of its own: those of annotators, or those that prefer safe responses."""

    objective: Objective
    label_M: Tensor
    relabels: bool = False

    def target(self, table: PairTable, dual: DualState) -> Tensor:
        """Return the fixed labels, [M]."""
        assert len(table) == len(self.label_M), "pairs without a label were added"
        return self.label_M

    def utility(self, scores: Scores, prompt: Tensor, dual: DualState) -> Tensor:
        """Return the utility of the other objective."""
        return self.objective.utility(scores, prompt, dual)

    def temperature(self, dual: DualState) -> float:
        """Return the temperature of the other objective."""
        return self.objective.temperature(dual)
