"""Batches of similar length, in an order that depends on (seed, epoch) alone; and the choice of prompts for a dual round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cdpo_lightning.streams import Stream, generator

_POOL = 32  # number of batches whose rows are sorted by length together


class LengthBuckets(Sampler[list[int]]):
    """Batches of row indices: rows are shuffled, then sorted by length within pools of batches, then the batches are shuffled.

    The batches depend on (seed, epoch) alone, so that a resumed run reads the same batches as an uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> None:
        self._lengths, self._batch_size = lengths, batch_size
        self._seed, self._epoch = seed, epoch
        self.taken = 0  # batches yielded in this epoch, including skipped ones
        self.skip = 0  # batches to skip at the start of the next epoch, because an interrupted run has read them

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
    """The batches of an epoch; after an interruption it continues with the next batch."""

    def __init__(self, rows: Sequence[Any], order: LengthBuckets, collate: Callable[[list[Any]], Any]) -> None:
        super().__init__(rows, batch_sampler=order, collate_fn=collate, num_workers=0)  # type: ignore[arg-type]
        self._order = order

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches read in this epoch."""
        return {"batches": self._order.taken}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Skip as many batches of the next epoch as the state has counted."""
        self._order.skip = state_dict["batches"]


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return row indices in batches of similar length, longest first, for passes without gradient."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def choose_prompts(count: int, size: int, seed: int) -> Tensor:
    """Return ascending indices of `size` of `count` prompts, drawn without replacement; all of them if `size` is 0."""
    if size == 0 or size >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values
