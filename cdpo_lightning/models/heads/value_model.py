"""A critic: a language-model backbone with one scalar head, applied before every token of a response."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.models.lm.packed_forward import response_hidden_states, supports_packing
from cdpo_lightning.text.packing import PackedRows


class ValueModel(nn.Module):
    """The value V(prompt, first tokens of the response) before each token of the response; the head starts at zero."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = copy.deepcopy(model.base_model).requires_grad_(True)
        self.backbone.packing_supported = supports_packing(model)
        with torch.random.fork_rng(devices=[]):  # nn.Linear draws weights that are set to zero at once
            self.head = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: PackedRows) -> Tensor:
        """Return the values [N], one before each response token of the rows, in units of reward or cost."""
        return self.head(response_hidden_states(self.backbone, rows))[:, 0].float()
