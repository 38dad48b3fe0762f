"""Constraints, the state of their multipliers, and the utility r - sum_k lambda_k phi_k that follows from both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdpo_lightning.constraints.measures import Measure, Memory
from cdpo_lightning.maths.preference import lagrangian_reward

REWARD = "reward"  # name of the score that is maximised
Scores = Mapping[str, Tensor]  # scores by name, all of one shape


@dataclass(frozen=True)
class Constraint:
    """The constraint measure(score) <= limit, over all prompts or over a group of them."""

    name: str
    score: str  # the name of the score that is measured; higher is worse
    measure: Measure
    limit: float  # in the measure's unit
    group: Tensor | None = None  # bool [P]: the prompts that the constraint is about; None: all

    def weighted(self, phi: Tensor, prompt: Tensor) -> Tensor:
        """Return phi 1[x in G] / P(G), the shape of `phi`: its mean over all prompts is the mean of phi over the group G.

        `prompt` has the number of each response's prompt, a shape that broadcasts with that of `phi`.
        """
        if self.group is None:
            return phi
        return phi * self.group[prompt].to(phi.dtype) / self.group.double().mean().to(phi.dtype)

    def covers(self, prompt: Tensor) -> Tensor:
        """Return whether each response counts, bool [N], by the number of its prompt [N]."""
        return torch.ones_like(prompt, dtype=torch.bool) if self.group is None else self.group[prompt]


@dataclass(frozen=True)
class DualState:
    """The state of the dual loop between two rounds; all mappings are by constraint name."""

    lam: Mapping[str, float]  # reward units per unit of the measure
    update_memory: Mapping[str, Memory] = field(default_factory=dict)
    measure_memory: Mapping[str, Memory] = field(default_factory=dict)
    round: int = 0  # rounds that are done
    lowest: Mapping[str, float] = field(default_factory=dict)  # mean over prompts of the smallest phi seen
    measured: Mapping[str, float] = field(default_factory=dict)  # in the last round, as the next two
    measured_se: Mapping[str, float] = field(default_factory=dict)
    alarm: Mapping[str, str] = field(default_factory=dict)

    def phi(self, constraint: Constraint, score: Tensor) -> Tensor:
        """Return phi, the constraint's transform of its score, the shape of `score`."""
        return constraint.measure.transform(score, self.measure_memory.get(constraint.name, {}))

    def state(self) -> dict[str, Any]:
        """Return the state as plain data for a checkpoint; `DualState(**data)` restores it."""
        return {name: _plain(value) for name, value in vars(self).items()}


def _plain(value: Any) -> Any:
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def weighted_phi(scores: Scores, constraint: Constraint, dual: DualState, prompt: Tensor) -> Tensor:
    """Return phi_k 1[x in G_k] / P(G_k) of one constraint, in its unit, shape of the scores; `prompt` as of `utility`."""
    return constraint.weighted(dual.phi(constraint, scores[constraint.score]), prompt)


def utility(scores: Scores, constraints: Sequence[Constraint], dual: DualState, prompt: Tensor) -> Tensor:
    """Return u = r - sum_k lambda_k phi_k 1[x in G_k] / P(G_k), reward units, shape of the scores [C-DPO, Eq. 11-12, for several].

    Args:
        scores: tensors of one shape by name, `reward` among them.
        constraints: each has its multiplier in `dual`.
        dual: the multipliers, and the memory of the measures.
        prompt: the number of each response's prompt, a shape that broadcasts with that of the scores.
    """
    value = scores[REWARD]
    for constraint in constraints:
        value = lagrangian_reward(value, weighted_phi(scores, constraint, dual, prompt), dual.lam[constraint.name])
    return value
