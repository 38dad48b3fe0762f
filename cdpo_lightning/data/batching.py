"""Batches of like length, in an order that depends on (seed, epoch) alone; and the prompts of a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cdpo_lightning.streams import Stream, generator

_POOL = 32  # batches that are sorted by length together


class LengthBuckets(Sampler[list[int]]):
    """Batches of row numbers: shuffled, sorted by length within pools of batches, then the batches shuffled.

    The same (seed, epoch) gives the same batches whatever ran before, so a resumed run reads what an uninterrupted one reads.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> None:
        self._lengths, self._batch_size = lengths, batch_size
        self._seed, self._epoch = seed, epoch
        self.taken = 0  # batches that were handed out
        self.skip = 0  # batches that a resumed epoch has behind it

    def __len__(self) -> int:
        return (len(self._lengths) + self._batch_size - 1) // self._batch_size

    def __iter__(self) -> Iterator[list[int]]:
        draw = generator(self._seed, Stream.BATCH_ORDER, self._epoch)
        order = torch.randperm(len(self._lengths), generator=draw).tolist()
        pool = _POOL * self._batch_size
        batches = []
        for start in range(0, len(order), pool):
            part = sorted(order[start : start + pool], key=lambda i: self._lengths[i])
            batches += [part[i : i + self._batch_size] for i in range(0, len(part), self._batch_size)]
        order = torch.randperm(len(batches), generator=draw).tolist()
        self.taken, self.skip = self.skip, 0
        for i in order[self.taken :]:
            self.taken += 1
            yield batches[i]


class ResumableLoader(DataLoader[Any]):
    """The batches of an epoch; one that was cut short goes on with the batch after the last one."""

    def __init__(self, rows: Sequence[Any], order: LengthBuckets, collate: Callable[[list[Any]], Any]) -> None:
        super().__init__(rows, batch_sampler=order, collate_fn=collate, num_workers=0)  # type: ignore[arg-type]
        self._order = order

    def state_dict(self) -> dict[str, int]:
        """How far the epoch has come."""
        return {"batches": self._order.taken}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on from there."""
        self._order.skip = state_dict["batches"]


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of like length, longest first: for passes without gradient."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def choose_prompts(count: int, wanted: int, seed: int) -> Tensor:
    """Numbers of the prompts of a round, in order: all of them if `wanted` is 0, else a seeded draw without replacement."""
    if wanted in (0, count) or wanted > count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].sort().values
