"""The layers of a network, and torch.compile for one at a time: all of them share one graph, for rows of any length."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._functorch import config as functorch_config

from cdpo_lightning.errors import ModelError


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of the outermost lists: what every token passes. A list inside one (experts) is not run by every token alike."""
    for part in model.children():
        yield from part if isinstance(part, nn.ModuleList) else layers_of(part)


@contextmanager
def compiled(model: nn.Module, wanted: bool, device: torch.device) -> Iterator[None]:
    """The model's layers compiled for the time of the context, in which they run on `device`.

    On a processor, what runs element by element is computed again in the backward pass: that costs no time there, and what is kept
    for the backward pass is about half as much.

    Raises:
        ModelError: the device is a processor, and there is no compiler for it.
    """
    if not wanted:
        yield
        return
    require_compiler(device)
    layers = list(layers_of(model))
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        with functorch_config.patch(aggressive_recomputation=device.type == "cpu"):
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def require_compiler(device: torch.device) -> None:
    """Raises:
    ModelError: torch.compile needs a C++ compiler for `device`, and none is found.
    """
    name = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(name) is None:
        raise ModelError(f"model.compile=true: expected a C++ compiler, found no {name}; install one, or set model.compile=false")


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """The model's layers as they are, compiled or not: while sampling, every token would be another graph."""
    impl = "_compiled_call_impl"
    held = [(layer, vars(layer)[impl]) for layer in layers_of(model) if vars(layer).get(impl) is not None]
    for layer, _ in held:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, result in held:
            layer._compiled_call_impl = result
