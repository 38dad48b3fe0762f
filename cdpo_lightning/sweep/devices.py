"""Which accelerators there are, and which of them a job gets."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence


def found_devices() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them; without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(at) for at, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]


class Pool:
    """Devices that are free. One that is listed several times is shared by so many jobs."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._free = list(devices)
        self.size = len(devices)

    def take(self, count: int) -> tuple[str, ...] | None:
        """So many different devices, the least used first; None if there are not so many free now."""
        chosen = sorted(set(self._free), key=lambda name: (-self._free.count(name), self._free.index(name)))[:count]
        if len(chosen) < count:
            return None
        for name in chosen:
            self._free.remove(name)
        return tuple(chosen)

    def give_back(self, devices: Sequence[str]) -> None:
        """They are free again."""
        self._free += devices
