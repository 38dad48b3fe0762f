"""The base of all modules: what a checkpoint holds of their networks."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn

from cdpo_lightning.errors import StorageError


class Learner(L.LightningModule):
    """Its checkpoint holds what is trained, and buffers; what is frozen is made again as it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # what is frozen is missing; whether all else is there is checked below

    def _trained(self) -> set[str]:
        state = self.state_dict(keep_vars=True)
        return {name for name, value in state.items() if isinstance(value, nn.Parameter) and value.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is not trained; sharded checkpoints hold no weights here."""
        kept = self._trained() | {name for name, _ in self.named_buffers()}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises:
        StorageError: a trained parameter is missing.
        """
        result = checkpoint.get("state_dict")
        if result and (missing := sorted(self._trained() - result.keys())):
            raise StorageError(
                f"the checkpoint of {type(self).__name__} lacks {missing[0]} and {len(missing) - 1} more; "
                "remove it and add resume=true: its stage begins anew"
            )
