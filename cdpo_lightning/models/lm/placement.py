"""The memory of a frozen model: on its compute device, or offloaded to the host's memory until it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def offload(model: nn.Module, device: torch.device) -> None:
    """Move the model to the host's memory; `on_device` will bring it to `device` for the time that it is used."""
    model.compute_device = device  # type: ignore[assignment]
    model.to("cpu")


@contextmanager
def on_device(model: nn.Module) -> Iterator[torch.device]:
    """Yield the device to run the model on. An offloaded model is moved there, and back to the host's memory afterwards."""
    current = next(model.parameters()).device
    device = getattr(model, "compute_device", current)
    if device == current:
        yield current
        return
    model.to(device)
    try:
        yield device
    finally:
        model.to(current)
