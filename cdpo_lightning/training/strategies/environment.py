"""Tells Lightning about the ranks of the run, which are started and connected before Lightning is called."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import ClusterEnvironment

from cdpo_lightning import ranks


class RunningRanks(ClusterEnvironment):
    """The ranks that our launcher, torchrun or srun has started; also a single process. Lightning starts none itself."""

    @property
    def creates_processes_externally(self) -> bool:
        """Return True: Lightning must not start processes."""
        return True

    @property
    def main_address(self) -> str:
        """Return the address of rank 0."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """Return the port of rank 0."""
        return int(os.environ.get("MASTER_PORT", "0"))

    @staticmethod
    def detect() -> bool:
        """Return whether this process is one of several ranks."""
        return ranks.launched_as_rank()

    def world_size(self) -> int:
        """Return the number of ranks."""
        return ranks.world_size()

    def set_world_size(self, size: int) -> None:
        """Do nothing: torch's process group holds the value."""

    def global_rank(self) -> int:
        """Return the index of this rank."""
        return ranks.rank()

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: torch's process group holds the value."""

    def local_rank(self) -> int:
        """Return the index of this rank on its machine."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    def node_rank(self) -> int:
        """Return the index of this machine."""
        return int(os.environ.get("GROUP_RANK", os.environ.get("NODE_RANK", "0")))
