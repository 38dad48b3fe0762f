"""The processes of one run: which part of the work is this one's, and how the parts come together again.

Every rank runs the same program on the same values and takes its part where the work is: of a batch, of the texts to score, of
the prompts to sample. What comes back is whole and the same on every rank. One process is the case of one rank: nothing is
split, copied or sent.
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

_PATIENCE = timedelta(hours=6)  # a rank may wait while another writes or reads; a dead one is noticed at once, not by the clock


def count() -> int:
    """Ranks of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """The number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this rank writes files and speaks to the user: exactly one does."""
    return number() == 0


def share(items: Sequence[T]) -> list[T]:
    """This rank's part of `items`, every W-th: all parts together are `items`, none twice."""
    return list(items[number() :: count()])


def part(batch: Sequence[T], size: Callable[[T], int]) -> tuple[list[T], float]:
    """This rank's share of a batch, and the weight of a mean over it; the ranks' weighted means average to that of the batch.

    A rank for which nothing is left takes the first item with weight 0: it still has to take part in the exchange of gradients.

    Args:
        size: how many of the things that the mean is over an item holds.
    """
    own = share(batch)
    return own or list(batch[:1]), count() * sum(map(size, own)) / max(1, sum(map(size, batch)))


def gathered(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def spread(items: Sequence[T], work: Callable[[list[T]], Sequence[R]]) -> list[R]:
    """`work(items)`, one result an item, each rank working on its own share; the whole, in order, on every rank."""
    own = list(work(share(items)))
    assert len(own) == len(share(items))
    result: list[Any] = [None] * len(items)
    for rank, part in enumerate(gathered(own)):
        result[rank :: count()] = part
    return result


def any_of(flag: bool) -> bool:
    """Whether it is so on any rank."""
    if count() == 1:
        return flag
    flags = torch.tensor([int(flag)])
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def all_of(flag: bool) -> bool:
    """Whether it is so on every rank."""
    return not any_of(not flag)


def most(number: int) -> int:
    """The largest of the ranks' numbers."""
    return max(gathered(number))


def agreed(value: T) -> T:
    """The first rank's value."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def wait() -> None:
    """Returns when all ranks have come here."""
    if count() > 1:
        dist.barrier()


def require_equal(name: str, value: object) -> None:
    """Raises:
    NumericsError: the ranks do not agree; what they train from here on would be different problems.
    """
    values = gathered(value)
    if any(other != values[0] for other in values):
        message = ", ".join(f"rank {rank}: {other}" for rank, other in enumerate(values))
        raise NumericsError(f"{name} differs between ranks ({message}), expected one value; are they machines of one kind?")


def started() -> bool:
    """Whether this process is one rank of several, started by us, by torchrun or by srun with `RANK` and `WORLD_SIZE`."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def joined(processes: int, on_gpu: bool, alone: bool = False) -> Iterator[None]:
    """The ranks, connected.

    Args:
        processes: how many there are to be.
        on_gpu: tensors on a GPU are sent by nccl; everything else always by gloo.
        alone: connect a single process too, to itself, as DeepSpeed asks for.

    Raises:
        ConfigError: another number of processes was started.
    """
    requested = int(os.environ["WORLD_SIZE"]) if started() else 1
    if requested != processes:
        raise ConfigError(
            f"trainer.devices * trainer.num_nodes = {processes}, but WORLD_SIZE={requested} processes were started; "
            "start that many, or unset RANK and WORLD_SIZE"
        )
    if processes == 1 and not alone:
        yield
        return
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    options: dict[str, Any] = {"backend": "cpu:gloo,cuda:nccl" if on_gpu else "gloo", "timeout": _PATIENCE}
    if processes == 1:
        options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(**options)
    try:
        yield
    finally:
        # Not after an error among several: to the others it would look like the cause, and be reported in its place.
        if processes == 1 or sys.exc_info()[0] is None:
            dist.destroy_process_group()
