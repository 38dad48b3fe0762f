"""The layers of a network, and torch.compile for each of them: all layers share one graph, for rows of any length."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cdpo_lightning import compat
from cdpo_lightning.errors import ModelError


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the elements of the outermost module lists, which every token passes through.

    Lists inside a layer (experts) are not followed: not every token passes through each expert.
    """
    for part in model.children():
        yield from part if isinstance(part, nn.ModuleList) else layers_of(part)


@contextmanager
def compiled(model: nn.Module, enabled: bool, device: torch.device) -> Iterator[None]:
    """Compile the model's layers for the duration of the context, in which they run on `device`.

    On a processor, elementwise results are computed again in the backward pass: it takes no more time there, and about halves the
    memory that is kept for the backward pass.

    Raises:
        ModelError: the device is a processor, and there is no C++ compiler.
    """
    if not enabled:
        yield
        return
    require_compiler(device)
    layers = list(layers_of(model))
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        with compat.recompute_elementwise(device.type == "cpu"):
            yield
    finally:
        for layer in layers:
            compat.set_compiled_call(layer, None)


def require_compiler(device: torch.device) -> None:
    """Check that torch.compile has the C++ compiler that it needs on a processor.

    Raises:
        ModelError: there is none.
    """
    name = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(name) is None:
        raise ModelError(
            f"model.compile=true: expected a C++ compiler, there is no {name}; install one, or set model.compile=false"
        )


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run the model's layers uncompiled for the duration of the context: in sampling, each token would need another graph."""
    calls = [(layer, call) for layer in layers_of(model) if (call := compat.compiled_call(layer)) is not None]
    for layer, _ in calls:
        compat.set_compiled_call(layer, None)
    try:
        yield
    finally:
        for layer, call in calls:
            compat.set_compiled_call(layer, call)
