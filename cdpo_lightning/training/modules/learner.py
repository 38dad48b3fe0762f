"""The base class of all Lightning modules, whose checkpoints hold the trained parameters only."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn

from cdpo_lightning.errors import StorageError


class Learner(L.LightningModule):
    """Saves trained parameters and buffers in the checkpoint; on a resume the frozen ones are built or loaded as at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # frozen parameters are missing; `on_load_checkpoint` checks that no trained one is

    def _trained(self) -> set[str]:
        state = self.state_dict(keep_vars=True)
        return {name for name, value in state.items() if isinstance(value, nn.Parameter) and value.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remove frozen parameters from the checkpoint; sharded checkpoints hold no weights here."""
        kept = self._trained() | {name for name, _ in self.named_buffers()}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint has every trained parameter.

        Raises:
            StorageError: a trained parameter is missing.
        """
        saved = checkpoint.get("state_dict")
        if saved and (missing := sorted(self._trained() - saved.keys())):
            raise StorageError(
                f"the checkpoint of {type(self).__name__} lacks {missing[0]} and {len(missing) - 1} more; "
                "remove it and add resume=true: the stage then starts again"
            )
