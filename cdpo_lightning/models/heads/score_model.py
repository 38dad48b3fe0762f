"""A language-model backbone with one scalar head, applied at the last attended token."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cdpo_lightning.errors import ModelError


class ScoreModel(nn.Module):
    """r(x,y) or c(x,y): any backbone with one linear head, here without bias.

    The head is applied at the last attended token according to the attention mask, not to token ids, so the score depends neither
    on the side and the length of the padding nor on the batch.
    """

    def __init__(self, backbone: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the scores [B] of the sequences [B, T], float32."""
        position = (attention_mask.cumsum(1) - 1).clamp(min=0)
        hidden = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position, use_cache=False
        ).last_hidden_state
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (attention_mask * index).argmax(1)
        last_hidden = hidden[torch.arange(len(last), device=last.device), last]
        return self.head(last_hidden)[:, 0].float()


def from_causal_lm(model: nn.Module, layers: int) -> ScoreModel:
    """Return a score model on a copy of the language model's backbone, of which it keeps the first `layers` layers (0: all).

    The head starts at zero, so that every score is 0 before training.

    Raises:
        ModelError: the backbone has fewer layers, or none under a known name.
    """
    backbone = copy.deepcopy(model.base_model)
    if layers:
        _keep_first_layers(backbone, layers)
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws weights that are set to zero at once
        return ScoreModel(backbone, model.config.hidden_size)


def _keep_first_layers(backbone: nn.Module, count: int) -> None:
    name = next((n for n in ("layers", "h") if isinstance(getattr(backbone, n, None), nn.ModuleList)), None)
    available = len(getattr(backbone, name)) if name else 0
    if name is None or count > available:
        has = f"{available} layers" if name else "no list of layers under a known name (layers, h)"
        raise ModelError(f"model.scorer_layers={count}: {type(backbone).__name__} has {has}; use fewer, or 0 for all")
    setattr(backbone, name, getattr(backbone, name)[:count])
    backbone.config.num_hidden_layers = count


def pad(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the sequences padded on the right and their attention mask, both [B, T]."""
    length = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (length - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in sequences])
    return ids, mask
