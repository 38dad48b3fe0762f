"""Where a frozen model waits: on the device it works on, or parked in the host's memory between two uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def park(model: nn.Module, device: torch.device) -> None:
    """Leaves the model in the host's memory; `at_work` brings it to `device` and takes it back."""
    model.works_on = device  # type: ignore[assignment]
    model.to("cpu")


@contextmanager
def on_device(model: nn.Module) -> Iterator[torch.device]:
    """The device on which the model works: where it is, or for the time of the context where `park` said."""
    home = next(model.parameters()).device
    device = getattr(model, "works_on", home)
    if device == home:
        yield home
        return
    model.to(device)
    try:
        yield device
    finally:
        model.to(home)
