"""The exploration bonus of O-PD-DPO, added to log pi_ref of responses that are unlike those seen.

The published bonus is b = a * ||phi(x,y)||_{Sigma^-1}, added to the objectives. phi is ours: the mean last hidden state of the
frozen reference, scaled to unit length. It is also ours to add b / beta to log pi_ref: the optimum for the reward r + b is the
optimum for r with the reference pi_ref exp(b / beta), so the labels need no change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdpo_lightning.constraints.constraint import DualState
from cdpo_lightning.data.batching import sorted_batches
from cdpo_lightning.data.pairs.objectives import Objective
from cdpo_lightning.data.pairs.pair_table import PairTable
from cdpo_lightning.maths.primal_dual import exploration_bonus
from cdpo_lightning.models.lm.packed_forward import precision_context, response_features
from cdpo_lightning.models.lm.placement import on_device
from cdpo_lightning.text.packing import pack, row_length

_RIDGE = 1.0  # features have unit length
_Key = tuple[int, tuple[int, ...]]  # prompt number, response tokens


class Exploration:
    """Computes the bonus `weight` * ||phi||_{Sigma^-1} / temperature, in nats; the features of a response are computed once."""

    def __init__(self, reference: nn.Module, objective: Objective, weight: float, batch_size: int, precision: str) -> None:
        self._reference, self._objective, self._weight = reference, objective, weight
        self._batch_size, self._precision = batch_size, precision
        self._features: dict[_Key, Tensor] = {}

    def __call__(self, table: PairTable, dual: DualState) -> Tensor:
        """Return the bonus of every response of the table, nats, [N]."""
        keys = list(zip(table.prompt_N.tolist(), table.responses, strict=True))
        self._compute(table, [key for key in dict.fromkeys(keys) if key not in self._features])
        features = torch.stack([self._features[key] for key in keys])
        return self._weight * exploration_bonus(features, features, _RIDGE) / self._objective.temperature(dual)

    @torch.no_grad()
    def _compute(self, table: PairTable, keys: list[_Key]) -> None:
        """Compute and keep the features of these responses."""
        rows = [(table.prompts[prompt], [response]) for prompt, response in keys]
        with on_device(self._reference) as device, precision_context(self._precision, device):
            for batch in sorted_batches([row_length(*row) for row in rows], self._batch_size):
                features = response_features(self._reference, pack([rows[i] for i in batch]).to(device)).cpu()
                self._features.update(zip([keys[i] for i in batch], features, strict=True))
