"""Lists the accelerators of this machine and assigns them to jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence


def visible_devices() -> list[str]:
    """Return the CUDA devices that this process may use, named as in CUDA_VISIBLE_DEVICES. Does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(index) for index, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]


class DevicePool:
    """The free devices. A device that is listed N times is shared by up to N jobs."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._free = list(devices)
        self.size = len(devices)

    def acquire(self, count: int) -> tuple[str, ...] | None:
        """Return `count` different devices, the least used first, or None if fewer are free."""
        chosen = sorted(set(self._free), key=lambda name: (-self._free.count(name), self._free.index(name)))[:count]
        if len(chosen) < count:
            return None
        for name in chosen:
            self._free.remove(name)
        return tuple(chosen)

    def release(self, devices: Sequence[str]) -> None:
        """Make the devices free again."""
        self._free += devices
