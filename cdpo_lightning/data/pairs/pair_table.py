"""Pairs of responses with the constants of a run: scores by name, log pi_ref, label draws. Labels follow from a utility alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdpo_lightning.maths.preference import preference_probability, preference_target


@dataclass(frozen=True)
class PairTable:
    """Responses [N] to prompts [P], their constants, and pairs [M] of responses, each with a uniform draw."""

    prompts: tuple[tuple[int, ...], ...]  # token ids, [P]
    responses: tuple[tuple[int, ...], ...]  # token ids, [N], the end token included
    prompt_N: Tensor  # the number of each response's prompt
    scores: dict[str, Tensor]  # by name, each [N]
    reference_logp_N: Tensor  # nats
    pair_M2: Tensor  # responses 0 and 1 of each pair
    draw_M: Tensor  # in [0, 1)

    def __len__(self) -> int:
        return len(self.pair_M2)

    def probability(self, utility_N: Tensor) -> Tensor:
        """Return P(response_1 preferred over response_0) under the utility of each response, [M] [C-DPO, Eq. 12]."""
        first, second = utility_N[self.pair_M2].unbind(1)
        return preference_probability(first, second)

    def target(self, utility_N: Tensor, labels: str) -> Tensor:
        """Return the label of each pair, [M]: the probability that response_1 is preferred under the utility [N]."""
        return preference_target(self.probability(utility_N), self.draw_M, labels)

    def lowest(self, value_N: Tensor) -> Tensor:
        """Return the smallest value among the responses to each prompt, [P]; inf where there is no response."""
        lowest = torch.full((len(self.prompts),), torch.inf, dtype=value_N.dtype)
        return lowest.scatter_reduce(0, self.prompt_N, value_N, "amin")

    def state(self) -> dict[str, Any]:
        """Return plain data and tensors for a checkpoint, without the prompts, which are those of the run."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return {**tensors, "scores": dict(self.scores), "responses": [list(r) for r in self.responses]}

    @classmethod
    def from_state(cls, state: dict[str, Any], prompts: tuple[tuple[int, ...], ...]) -> PairTable:
        """Return the table with this state, a result of `state`."""
        rest = {name: value for name, value in state.items() if name != "responses"}
        return cls(prompts=prompts, responses=tuple(tuple(r) for r in state["responses"]), **rest)


def label_flips(table: PairTable, before_N: Tensor, after_N: Tensor) -> float:
    """Return the share of pairs whose preferred response changes from one utility [N] of the responses to the other, in [0, 1]."""
    old, new = (table.target(utility, "argmax") for utility in (before_N, after_N))
    return float((old != new).double().mean()) if len(table) else 0.0


def concatenate(tables: Sequence[PairTable]) -> PairTable:
    """Return all pairs of tables that share their prompts and the names of their scores, the first table's first."""
    offset, pairs = 0, []
    for table in tables:
        pairs.append(table.pair_M2 + offset)
        offset += len(table.responses)
    names = ("prompt_N", "reference_logp_N", "draw_M")
    joined = {name: torch.cat([getattr(t, name) for t in tables]) for name in names}
    return PairTable(
        prompts=tables[0].prompts,
        responses=tuple(r for t in tables for r in t.responses),
        scores={name: torch.cat([t.scores[name] for t in tables]) for name in tables[0].scores},
        pair_M2=torch.cat(pairs),
        **joined,
    )


def draws(count: int, seed: int) -> Tensor:
    """Return `count` uniform numbers of the seed, [count], float64."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
