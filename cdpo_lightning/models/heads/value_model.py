"""A critic: a language-model backbone with one scalar head, read before every token of a response."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.models.lm.packed_forward import reads_packed, response_states
from cdpo_lightning.text.packing import PackedRows


class ValueModel(nn.Module):
    """V(prompt and the response so far) before each of its tokens; the head starts at zero."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = copy.deepcopy(model.base_model).requires_grad_(True)
        self.backbone.packs = reads_packed(model)
        with torch.random.fork_rng(devices=[]):  # nn.Linear draws what is set to zero at once
            self.head = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: PackedRows) -> Tensor:
        """Values [N], one before each of the rows' response tokens, in reward or cost units."""
        return self.head(response_states(self.backbone, rows))[:, 0].float()
