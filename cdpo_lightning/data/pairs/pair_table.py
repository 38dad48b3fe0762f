"""Pairs of responses with the constants of a run beside them: r, c, log pi_ref and the draws. Labels follow from lambda alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdpo_lightning.maths.preference import lagrangian_reward, preference_probability, preference_target


@dataclass(frozen=True)
class PairTable:
    """Responses [N] to prompts, their constants, and pairs [M] of them, each with a uniform draw."""

    prompts: tuple[tuple[int, ...], ...]  # token ids
    responses: tuple[tuple[int, ...], ...]  # token ids [N], the end token included
    prompt_N: Tensor  # the prompt of each response
    reward_N: Tensor
    cost_N: Tensor
    reference_logp_N: Tensor  # nats
    pair_M2: Tensor  # responses 0 and 1 of each pair
    draw_M: Tensor

    def __len__(self) -> int:
        return len(self.pair_M2)

    def probability(self, lam: float) -> Tensor:
        """P(response_1 preferred over response_0) under r - lam c, shape [M] [C-DPO, Eq. 12]."""
        lagrangian = lagrangian_reward(self.reward_N, self.cost_N, lam)[self.pair_M2]
        return preference_probability(lagrangian[:, 0], lagrangian[:, 1])

    def target(self, lam: float, labels: str) -> Tensor:
        """The label of each pair, shape [M]: the (probability of the) preference for response_1."""
        return preference_target(self.probability(lam), self.draw_M, labels)

    def lowest_cost(self) -> Tensor:
        """The smallest cost seen, for every prompt [P]; inf where there is no response."""
        lowest = torch.full((len(self.prompts),), torch.inf, dtype=self.cost_N.dtype)
        return lowest.scatter_reduce(0, self.prompt_N, self.cost_N, "amin")

    def state(self) -> dict[str, Any]:
        """Plain data and tensors, for a checkpoint; the prompts are those of the run."""
        fields = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        return {**fields, "responses": [list(r) for r in self.responses]}

    @classmethod
    def from_state(cls, state: dict[str, Any], prompts: tuple[tuple[int, ...], ...]) -> PairTable:
        """The table whose `state` this is."""
        rest = {k: v for k, v in state.items() if k != "responses"}
        return cls(prompts=prompts, responses=tuple(tuple(r) for r in state["responses"]), **rest)


def label_flips(table: PairTable, before: float, after: float) -> float:
    """Share of pairs whose preferred response changes when lambda goes from `before` to `after`."""
    old, new = (table.target(lam, "argmax") for lam in (before, after))
    return float((old != new).double().mean()) if len(table) else 0.0


def concatenate(tables: Sequence[PairTable]) -> PairTable:
    """All pairs of tables that share their prompts, the first table's first."""
    offset, pairs = 0, []
    for table in tables:
        pairs.append(table.pair_M2 + offset)
        offset += len(table.responses)
    names = ("prompt_N", "reward_N", "cost_N", "reference_logp_N", "draw_M")
    joined = {name: torch.cat([getattr(t, name) for t in tables]) for name in names}
    responses = tuple(r for t in tables for r in t.responses)
    return PairTable(prompts=tables[0].prompts, responses=responses, pair_M2=torch.cat(pairs), **joined)


def draws(count: int, seed: int) -> Tensor:
    """`count` uniform numbers that belong to the seed, float64."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
