"""Log-probabilities of the responses of many rows, in batches of rows of similar length, spread over the ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cdpo_lightning import ranks
from cdpo_lightning.data.batching import sorted_batches
from cdpo_lightning.models.lm.packed_forward import precision_context, response_logp
from cdpo_lightning.models.lm.placement import on_device
from cdpo_lightning.text.packing import TokenRow, pack, row_length


def response_logp_of_rows(model: nn.Module, rows: Sequence[TokenRow], batch_size: int, precision: str) -> Tensor:
    """Return log pi(y|x) of every response of the rows, in order: nats, float64, shape [R].

    Each rank computes its share of the rows; all ranks must call it together, and all get the whole result.
    """
    result = ranks.map_over_ranks(rows, lambda own: local_response_logp(model, own, batch_size, precision))
    return torch.cat(result) if result else torch.empty(0, dtype=torch.float64)


@torch.no_grad()
def local_response_logp(model: nn.Module, rows: list[TokenRow], batch_size: int, precision: str) -> Sequence[Tensor]:
    """Return log pi(y|x) of the responses of each row, computed by this rank alone: one tensor a row, nats, float64."""
    lengths = [row_length(*row) for row in rows]
    offsets = torch.tensor([0, *[len(responses) for _, responses in rows]]).cumsum(0)
    result = torch.empty(int(offsets[-1]), dtype=torch.float64)
    with on_device(model) as device, precision_context(precision, device):
        for batch in sorted_batches(lengths, batch_size):
            logp = response_logp(model, pack([rows[i] for i in batch]).to(device))
            index = torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in batch])
            result[index] = logp.double().cpu()
    return result.split([len(responses) for _, responses in rows])
