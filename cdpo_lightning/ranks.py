"""The ranks (processes) of one run: which items each rank works on, and the collectives that combine their results.

Every rank runs the same program on the same values. Work is split where it is done: a batch, the texts to score, the prompts to
sample. Results are then gathered, so that every rank holds all of them. In a run of one process these functions copy and send
nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cdpo_lightning.errors import ConfigError, NumericsError

T = TypeVar("T")
R = TypeVar("R")

_TIMEOUT = timedelta(hours=6)  # one rank may read or write for long while the others wait; a rank that died is noticed at once


def world_size() -> int:
    """Return the number of ranks of this run; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this is rank 0, the only one that writes shared files and prints."""
    return rank() == 0


def own_share(items: Sequence[T]) -> list[T]:
    """Return every `world_size()`-th item, starting at `rank()`: each item belongs to exactly one rank."""
    return list(items[rank() :: world_size()])


def batch_share(batch: Sequence[T], size: Callable[[T], int]) -> tuple[list[T], float]:
    """Return this rank's items of a batch, and the weight of the mean over them.

    The average over ranks of (weight * mean over the rank's items) is the mean over the whole batch. A rank that has no items gets
    the first item of the batch with weight 0, because it must still take part in the all-reduce of the gradients.

    Args:
        size: returns how many terms of the mean (pairs, tokens, ...) an item contributes.
    """
    own = own_share(batch)
    return own or list(batch[:1]), world_size() * sum(map(size, own)) / max(1, sum(map(size, batch)))


def all_gather(value: T) -> list[T]:
    """Return the values of all ranks, ordered by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def map_over_ranks(items: Sequence[T], work: Callable[[list[T]], Sequence[R]]) -> list[R]:
    """Return `work(items)`, computed in parallel: each rank calls `work` on its own share, and every rank gets all results.

    Args:
        work: returns one result per item, in the order of the items.
    """
    own = list(work(own_share(items)))
    assert len(own) == len(own_share(items))
    results: list[Any] = [None] * len(items)
    for index, share in enumerate(all_gather(own)):
        results[index :: world_size()] = share
    return results


def any_rank(flag: bool) -> bool:
    """Return whether the flag is true on at least one rank."""
    if world_size() == 1:
        return flag
    flags = torch.tensor([int(flag)])
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def all_ranks(flag: bool) -> bool:
    """Return whether the flag is true on every rank."""
    return not any_rank(not flag)


def max_over_ranks(value: int) -> int:
    """Return the largest of the ranks' values."""
    return max(all_gather(value))


def broadcast(value: T) -> T:
    """Return the value of rank 0."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def barrier() -> None:
    """Wait until every rank has called this function."""
    if world_size() > 1:
        dist.barrier()


def require_equal(name: str, value: object) -> None:
    """Raise an error unless all ranks pass the same value.

    Raises:
        NumericsError: the values differ, so the ranks would go on to train different models.
    """
    values = all_gather(value)
    if any(other != values[0] for other in values):
        listing = ", ".join(f"rank {index}: {other}" for index, other in enumerate(values))
        raise NumericsError(
            f"{name} differs between ranks ({listing}), expected one value; check that all machines are of one kind"
        )


def launched_as_rank() -> bool:
    """Return whether this process was started as one of several ranks: by our launcher, by torchrun, or by srun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(processes: int, on_gpu: bool, single_process: bool = False) -> Iterator[None]:
    """Open torch's default process group and close it at the end.

    Args:
        processes: the expected number of ranks.
        on_gpu: use NCCL for tensors on a GPU. Everything else uses Gloo.
        single_process: open a group for one process too; DeepSpeed needs one.

    Raises:
        ConfigError: the number of processes that were started is not `processes`.
    """
    started = int(os.environ["WORLD_SIZE"]) if launched_as_rank() else 1
    if started != processes:
        raise ConfigError(
            f"trainer.devices * trainer.num_nodes = {processes}, but WORLD_SIZE={started} processes were started; "
            "start that many, or unset RANK and WORLD_SIZE"
        )
    if processes == 1 and not single_process:
        yield
        return
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    options: dict[str, Any] = {"backend": "cpu:gloo,cuda:nccl" if on_gpu else "gloo", "timeout": _TIMEOUT}
    if processes == 1:
        options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(**options)
    try:
        yield
    finally:
        # Not closed after an error among several ranks: the others would fail on the closed connection, which hides the cause.
        if processes == 1 or sys.exc_info()[0] is None:
            dist.destroy_process_group()
