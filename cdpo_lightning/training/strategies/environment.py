"""The ranks of a run as Lightning asks for them: they are running and connected before it is called."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import ClusterEnvironment

from cdpo_lightning import ranks


class RunningRanks(ClusterEnvironment):
    """Started by us, by torchrun or by srun; Lightning, which would start its own, is told that they are there."""

    @property
    def creates_processes_externally(self) -> bool:
        """True: there is nothing to start."""
        return True

    @property
    def main_address(self) -> str:
        """The address of rank 0."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """The port of rank 0."""
        return int(os.environ.get("MASTER_PORT", "0"))

    @staticmethod
    def detect() -> bool:
        """Whether this process is one of several."""
        return ranks.launched_as_rank()

    def world_size(self) -> int:
        """Ranks of the run."""
        return ranks.world_size()

    def set_world_size(self, size: int) -> None:
        """Nothing to set."""

    def global_rank(self) -> int:
        """This rank."""
        return ranks.rank()

    def set_global_rank(self, rank: int) -> None:
        """Nothing to set."""

    def local_rank(self) -> int:
        """This rank among those of its machine."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    def node_rank(self) -> int:
        """The number of this machine."""
        return int(os.environ.get("GROUP_RANK", os.environ.get("NODE_RANK", "0")))
