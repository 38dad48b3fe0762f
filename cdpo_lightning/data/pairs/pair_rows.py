"""Groups the pairs of a prompt into rows, so that a response that several pairs share is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cdpo_lightning.data.pairs.pair_table import PairTable
from cdpo_lightning.streams import Stream, generator


@dataclass(frozen=True)
class GroupRow:
    """A prompt with some of its pairs and the distinct responses of these pairs."""

    number: int  # of the prompt
    prompt: tuple[int, ...]
    responses: list[tuple[int, ...]]
    members: list[int]  # the responses' numbers in the table
    pairs: list[int]  # the pairs' numbers in the table
    local: list[tuple[int, int]]  # the pairs as indices into `responses`


def prompt_groups(table: PairTable, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the numbers of all pairs in random groups of at most `size` pairs of one prompt; they depend on (seed, epoch)."""
    order = torch.randperm(len(table), generator=generator(seed, Stream.PAIR_GROUPS, epoch))
    prompt = table.prompt_N[table.pair_M2[order, 0]]
    order = order[prompt.argsort(stable=True)]
    counts = prompt.bincount().tolist()
    groups, start = [], 0
    for count in counts:
        own = order[start : start + count].tolist()
        groups += [own[i : i + size] for i in range(0, count, size)]
        start += count
    return groups


def group_rows(table: PairTable, groups: Sequence[Sequence[int]]) -> list[GroupRow]:
    """Return one row for each group of pairs; equal responses are merged."""
    ends = table.pair_M2.tolist()
    return [_row(table, list(group), [ends[pair] for pair in group]) for group in groups]


def _row(table: PairTable, pairs: list[int], ends: list[list[int]]) -> GroupRow:
    location: dict[tuple[int, ...], int] = {}
    members: list[int] = []

    def of(response: int) -> int:
        tokens = table.responses[response]
        if tokens not in location:
            location[tokens] = len(location)
            members.append(response)
        return location[tokens]

    local = [(of(first), of(second)) for first, second in ends]
    number = int(table.prompt_N[ends[0][0]])
    return GroupRow(number, table.prompts[number], list(location), members, pairs, local)
