"""A model that ZeRO-3 has sharded, runnable on every rank without gradient: gathered once, or layer by layer as it is run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.models.lm.layers import layers_of

Loans = list[tuple[nn.Parameter, nn.Parameter]]  # ours, empty; DeepSpeed's, sharded


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the model without its weights."""
    empty = {id(p): nn.Parameter(p.detach().new_empty(0), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, empty)


def gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """The parameters whole on every rank; all ranks come here together."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters))


@contextmanager
def runnable(empty: nn.Module, model: nn.Module, by_layer: bool) -> Iterator[nn.Module]:
    """`empty`, the model's structure, on the model's weights; without DeepSpeed's hooks, which would gather them for every token.

    Args:
        by_layer: gather each layer when it is run, and embeddings, last norm and head at once. Takes the memory of one layer, and
            every rank has to run the model as often as all others; `in_step` on the model says so.
    """
    empty.in_step = by_layer  # type: ignore[assignment]
    layers = list(zip(layers_of(empty), layers_of(model), strict=True)) if by_layer else []
    in_layers = {id(p) for mine, _ in layers for p in mine.parameters()}
    with ExitStack() as until_the_end:
        until_the_end.enter_context(_lent([loan for loan in _loans(empty, model) if id(loan[0]) not in in_layers]))
        for mine, theirs in layers:
            _lend_when_run(until_the_end, mine, theirs)
        yield empty.train(model.training)


def _loans(mine: nn.Module, theirs: nn.Module) -> Loans:
    return list(zip(mine.parameters(), theirs.parameters(), strict=True))


@contextmanager
def _lent(loans: Loans) -> Iterator[None]:
    with gathered(theirs for _, theirs in loans):
        for mine, theirs in loans:
            mine.data = theirs.data
        yield
        for mine, _ in loans:
            mine.data = torch.empty(0, dtype=mine.dtype, device=mine.device)


def _lend_when_run(until: ExitStack, mine: nn.Module, theirs: nn.Module) -> None:
    """Hooks on the layer that gather its weights before it is run and let them go after it."""
    running = until.enter_context(ExitStack())

    def begin(*_: object) -> None:
        running.enter_context(_lent(_loans(mine, theirs)))

    def end(*_: object) -> None:
        running.close()

    until.callback(mine.register_forward_pre_hook(begin).remove)
    until.callback(mine.register_forward_hook(end).remove)


def on_host(parameters: dict[str, Tensor], sharded: bool) -> dict[str, Tensor]:
    """Copies in the memory of the host, of sharded parameters gathered one at a time, on all ranks together."""
    result = {}
    for name, parameter in parameters.items():
        with gathered([parameter]) if sharded else nullcontext():  # type: ignore[list-item]
            result[name] = parameter.detach().to("cpu", copy=True).contiguous()
    return result
