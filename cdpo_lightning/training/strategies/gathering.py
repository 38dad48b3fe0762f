"""Runs a model that ZeRO-3 has sharded, on every rank and without gradient: gathered once, or layer by layer as it runs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.models.lm.layers import layers_of

ParameterPairs = list[tuple[nn.Parameter, nn.Parameter]]  # the empty one of the skeleton, the sharded one of DeepSpeed


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of the model in which all parameters are empty."""
    empty = {id(p): nn.Parameter(p.detach().new_empty(0), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, empty)


def gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Gather the parameters on every rank for the block; all ranks must call this together."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters))


@contextmanager
def runnable(empty: nn.Module, model: nn.Module, by_layer: bool) -> Iterator[nn.Module]:
    """Yield the skeleton `empty` with the weights of the model, without DeepSpeed's hooks, which would gather them for every token.

    Args:
        by_layer: gather each layer when it runs; embeddings, last norm and head for the whole block. It takes the memory of one
            layer, but every rank must run the model equally often: `needs_lockstep` is set on the model to tell its callers.
    """
    empty.needs_lockstep = by_layer  # type: ignore[assignment]
    layers = list(zip(layers_of(empty), layers_of(model), strict=True)) if by_layer else []
    in_layers = {id(p) for mine, _ in layers for p in mine.parameters()}
    with ExitStack() as until_the_end:
        until_the_end.enter_context(_filled([pair for pair in _pairs(empty, model) if id(pair[0]) not in in_layers]))
        for mine, theirs in layers:
            _fill_during_forward(until_the_end, mine, theirs)
        yield empty.train(model.training)


def _pairs(mine: nn.Module, theirs: nn.Module) -> ParameterPairs:
    return list(zip(mine.parameters(), theirs.parameters(), strict=True))


@contextmanager
def _filled(pairs: ParameterPairs) -> Iterator[None]:
    with gathered(theirs for _, theirs in pairs):
        for mine, theirs in pairs:
            mine.data = theirs.data
        yield
        for mine, _ in pairs:
            mine.data = torch.empty(0, dtype=mine.dtype, device=mine.device)


def _fill_during_forward(until: ExitStack, mine: nn.Module, theirs: nn.Module) -> None:
    """Register hooks that gather the weights of a layer before its forward pass and free them after it."""
    running = until.enter_context(ExitStack())

    def begin(*_: object) -> None:
        running.enter_context(_filled(_pairs(mine, theirs)))

    def end(*_: object) -> None:
        running.close()

    until.callback(mine.register_forward_pre_hook(begin).remove)
    until.callback(mine.register_forward_hook(end).remove)


def on_host(parameters: dict[str, Tensor], sharded: bool) -> dict[str, Tensor]:
    """Return copies in the host's memory; sharded parameters are gathered one at a time, so all ranks must call this together."""
    result = {}
    for name, parameter in parameters.items():
        with gathered([parameter]) if sharded else nullcontext():  # type: ignore[list-item]
            result[name] = parameter.detach().to("cpu", copy=True).contiguous()
    return result
