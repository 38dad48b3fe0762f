"""Rows of one prompt and several responses: `[prompt | response_0 | response_1 ...]`.

The prompt is read once; positions restart after it for each response, and each response sees the prompt and itself only, so a
row gives the same log-probabilities as its responses one at a time. Shape legend: B rows, T positions, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

Ids = Sequence[int]
Row = tuple[Ids, Sequence[Ids]]  # a prompt and its responses


@dataclass(frozen=True)
class PackedRows:
    """A batch for the language model, and which of its hidden states predict which token of which response."""

    input_ids_BT: Tensor
    position_BT: Tensor
    segment_BT: Tensor  # number of the prompt or response that a token is of, each in the batch its own; -1: padding
    prompt_BT: Tensor  # number of the prompt that it follows; of a prompt, its own
    source_N: Tensor  # index into the flattened [B*T] hidden states
    target_N: Tensor  # token ids
    response_N: Tensor  # number of the response, rows in order, in [0, responses)
    responses: int
    tokens: int  # without padding

    def to(self, device: torch.device | str) -> PackedRows:
        """The same batch on `device`."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return PackedRows(**moved, responses=self.responses, tokens=self.tokens)


def row_length(prompt: Ids, responses: Sequence[Ids]) -> int:
    """Tokens of the row that `pack` makes of them."""
    return len(prompt) + sum(len(response) for response in responses)


def attention_mask(rows: PackedRows) -> Tensor:
    """Who may look at whom, bool [B, 1, T, T], True: may look.

    A position sees earlier positions of its own segment and of the prompt. Padding sees itself, so that no row of the softmax
    is empty.
    """
    return visible(rows.segment_BT, rows.prompt_BT)


def visible(segment: Tensor, prompt: Tensor) -> Tensor:
    """The same, of the numbers [B, T] of `PackedRows`."""
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    key = segment[:, None, :]
    return (causal & ((key == segment[:, :, None]) | (key == prompt[:, :, None])))[:, None]


def joined(rows: PackedRows) -> PackedRows:
    """The same batch as one row without padding, for attention that can tell its rows apart."""
    real = rows.segment_BT.flatten() >= 0
    location = real.cumsum(0) - 1
    one = {name: getattr(rows, name).flatten()[real][None] for name in ("input_ids_BT", "position_BT", "segment_BT", "prompt_BT")}
    return replace(rows, **one, source_N=location[rows.source_N])


def pack(rows: Sequence[Row]) -> PackedRows:
    """The batch of `rows`, each a prompt of at least one token and its responses, padded on the right."""
    length = max(row_length(*row) for row in rows)
    tokens, positions, segments, prompts = [], [], [], []
    source: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    number = 0
    for b, (prompt, responses) in enumerate(rows):
        start, ids, position = len(prompt), list(prompt), list(range(len(prompt)))
        segment = [b + number] * len(prompt)
        missing = length - row_length(prompt, responses)
        prompts.append([b + number] * (length - missing) + [-1] * missing)
        for response in responses:
            offset = b * length + len(ids)
            source += [b * length + start - 1, *range(offset, offset + len(response) - 1)]
            target += response
            owner += [number] * len(response)
            number += 1
            ids += response
            position += range(start, start + len(response))
            segment += [b + number] * len(response)
        tokens.append(ids + [0] * missing)
        positions.append(position + [0] * missing)
        segments.append(segment + [-1] * missing)
    return PackedRows(
        input_ids_BT=_numbers(tokens),
        position_BT=_numbers(positions),
        segment_BT=_numbers(segments),
        prompt_BT=_numbers(prompts),
        source_N=_numbers(source),
        target_N=_numbers(target),
        response_N=_numbers(owner),
        responses=number,
        tokens=sum(row_length(*row) for row in rows),
    )


def _numbers(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    """`torch.tensor(values)`, by way of numpy, which reads lists four times as fast."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def apart(rows: PackedRows) -> PackedRows:
    """The same responses in the same order, each in a row of its own: for models that cannot keep to the mask of a shared row."""
    length = rows.input_ids_BT.shape[1]
    ids = rows.input_ids_BT.tolist()
    last: list[int] = []  # of each response: where the prompt ends, in the flattened rows
    responses: list[list[int]] = []
    for source, target, owner in zip(rows.source_N.tolist(), rows.target_N.tolist(), rows.response_N.tolist(), strict=True):
        if owner == len(responses):
            last.append(source)
            responses.append([])
        responses[owner].append(target)
    singles = [(ids[at // length][: at % length + 1], [response]) for at, response in zip(last, responses, strict=True)]
    return pack(singles).to(rows.input_ids_BT.device)
