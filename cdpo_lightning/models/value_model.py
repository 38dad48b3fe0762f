"""A critic: a language-model backbone with one scalar head, read before every token of a response."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.data.packing import PackedRows


class ValueModel(nn.Module):
    """V(prompt and the response so far) before each of its tokens; the head starts at zero."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = copy.deepcopy(model.base_model).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):  # nn.Linear draws what is set to zero at once
            self.head = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: PackedRows) -> Tensor:
        """Values [N], one before each of the rows' response tokens, in reward or cost units."""
        hidden = self.backbone(
            input_ids=rows.input_ids_BT, attention_mask=rows.mask_B1TT, position_ids=rows.position_BT, use_cache=False
        ).last_hidden_state
        return self.head(hidden.flatten(0, 1)[rows.source_N])[:, 0].float()
