"""Scores texts with a score model, trained by this run or published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning import ranks
from cdpo_lightning.data.batching import sorted_batches
from cdpo_lightning.models.heads.score_model import pad
from cdpo_lightning.models.lm.packed_forward import precision_context
from cdpo_lightning.models.lm.placement import on_device
from cdpo_lightning.scorers.scorer import Text, require_finite
from cdpo_lightning.text.templates import encode_scored


@dataclass(frozen=True)
class ModelScorer:
    """A score model with its own tokenizer and template. Each rank scores its share of the texts; all get all scores."""

    model: nn.Module  # scores [B] of ids and mask, both [B, T]
    tokenizer: Any
    template: str
    max_tokens: int
    batch_size: int
    precision: str
    identity: str
    unit: float = 1.0  # raw scores are divided by it; a negative unit reverses their sign
    options: Mapping[str, Any] = field(default_factory=dict)  # of the chat template
    published: bool = False  # not trained here

    @torch.no_grad()
    def score(self, texts: Sequence[Text]) -> Tensor:
        """Return scores [N], float64, in units; equal texts are run once.

        Raises:
            NumericsError: a score is not finite.
        """
        unique = list(dict.fromkeys(texts))
        scores = torch.tensor(ranks.map_over_ranks(unique, self.local_scores), dtype=torch.float64) / self.unit
        require_finite(scores, unique, self.identity)
        number = {text: i for i, text in enumerate(unique)}
        return scores[[number[text] for text in texts]]

    def local_scores(self, texts: list[Text]) -> list[float]:
        """Return the raw scores of distinct texts, not divided by the unit, computed by this rank alone."""
        ids = [encode_scored(*text, self.template, self.tokenizer, self.max_tokens, self.options) for text in texts]
        scores = torch.empty(len(texts), dtype=torch.float64)
        with on_device(self.model) as device, precision_context(self.precision, device):
            for batch in sorted_batches([len(i) for i in ids], self.batch_size):
                scores[batch] = self.model(*(t.to(device) for t in pad([ids[i] for i in batch]))).double().cpu()
        return scores.tolist()
