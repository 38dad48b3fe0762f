"""Measures: what a constraint bounds. Each is an expectation of a transformed score, so that it is linear in the policy.

With phi = transform(score), the constraint measure <= limit is E[phi] + offset <= limit, and r - lambda phi is the utility of the
Lagrangian. A measure with an auxiliary number (the value at risk of a CVaR) keeps it in its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cdpo_lightning.registry import Registry

Memory = Mapping[str, float]


class Measure(Protocol):
    """A measure of one score of a policy's responses: measure = E[transform(score)] + offset."""

    def transform(self, score: Tensor, memory: Memory) -> Tensor:
        """Return phi, in the measure's unit, the shape of `score`."""
        ...

    def offset(self, memory: Memory) -> float:
        """Return the number that is added to E[phi] to give the measure, in the measure's unit."""
        ...

    def remember(self, score: Tensor, limit: float, memory: Memory) -> Memory:
        """Return the memory after a round with these scores [N]."""
        ...


MEASURES: Registry[type[Measure]] = Registry("constraints.measure")


@MEASURES.register("mean")
@dataclass(frozen=True)
class Mean:
    """E[c], the measure of the paper [C-DPO, Eq. 7]."""

    def transform(self, score: Tensor, memory: Memory) -> Tensor:
        """Return the score itself."""
        return score

    def offset(self, memory: Memory) -> float:
        """Return 0."""
        return 0.0

    def remember(self, score: Tensor, limit: float, memory: Memory) -> Memory:
        """Return `memory` unchanged: the mean needs none."""
        return memory
