"""Constraints, the state of their multipliers, and the utility that both make of the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdpo_lightning.constraints.measures import Measure, Memory
from cdpo_lightning.maths.preference import lagrangian_reward

REWARD = "reward"  # the score that is maximised
Scores = Mapping[str, Tensor]  # by name, all of one shape


@dataclass(frozen=True)
class Constraint:
    """measure(score) <= limit, over all prompts or over a group of them."""

    name: str
    score: str  # the name of the score that is measured; higher is worse
    measure: Measure
    limit: float  # in the measure's unit
    group: Tensor | None = None  # bool [P]: the prompts that it is over; None: all

    def weighted(self, phi: Tensor, prompt: Tensor) -> Tensor:
        """Return phi 1[x in G] / P(G), shape [N] as given, of responses [N] to the prompts with these numbers [N]."""
        if self.group is None:
            return phi
        return phi * self.group[prompt].to(phi.dtype) / self.group.double().mean().to(phi.dtype)

    def covers(self, prompt: Tensor) -> Tensor:
        """Return which responses [N] count, bool [N], given the numbers of their prompts [N]."""
        return torch.ones_like(prompt, dtype=torch.bool) if self.group is None else self.group[prompt]


@dataclass(frozen=True)
class DualState:
    """Everything that the dual loop remembers from one round to the next; dictionaries are by constraint name."""

    lam: Mapping[str, float]  # reward units per unit of the measure
    update_memory: Mapping[str, Memory] = field(default_factory=dict)
    measure_memory: Mapping[str, Memory] = field(default_factory=dict)
    round: int = 0
    lowest: Mapping[str, float] = field(default_factory=dict)  # mean over prompts of the smallest phi seen
    measured: Mapping[str, float] = field(default_factory=dict)
    measured_se: Mapping[str, float] = field(default_factory=dict)
    alarm: Mapping[str, str] = field(default_factory=dict)

    def phi(self, constraint: Constraint, score: Tensor) -> Tensor:
        """Return the transformed score of a constraint, shape as given."""
        return constraint.measure.transform(score, self.measure_memory.get(constraint.name, {}))

    def state(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {name: _plain(value) for name, value in vars(self).items()}


def _plain(value: Any) -> Any:
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def utility(scores: Scores, constraints: Sequence[Constraint], dual: DualState, prompt: Tensor) -> Tensor:
    """Return u = r - sum_k lambda_k phi_k 1[x in G_k] / P(G_k), reward units, shape of the scores [C-DPO, Eq. 11-12, for several].

    Args:
        scores: each of the same shape; `reward` is among them.
        constraints: every one of them has a lambda in `dual`.
        dual: the multipliers.
        prompt: the number of each score's prompt, a shape that broadcasts with the scores'.
    """
    value = scores[REWARD]
    for constraint in constraints:
        phi = constraint.weighted(dual.phi(constraint, scores[constraint.score]), prompt)
        value = lagrangian_reward(value, phi, dual.lam[constraint.name])
    return value
