"""Packed rows of one prompt and several responses: `[prompt | response_0 | response_1 ...]`.

The prompt is processed once. The positions of each response continue from the end of the prompt, and each response attends to
the prompt and itself only, so that its log-probability is the same as in a row of its own. Shape legend: B rows, T positions,
N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

Ids = Sequence[int]
TokenRow = tuple[Ids, Sequence[Ids]]  # a prompt and its responses


@dataclass(frozen=True)
class PackedRows:
    """A batch for the language model, and which of its hidden states predicts which token of which response.

    A segment is one prompt or one response; segment numbers are unique within the batch.
    """

    input_ids_BT: Tensor
    position_BT: Tensor
    segment_BT: Tensor  # segment of each token; -1: padding
    prompt_BT: Tensor  # segment of the prompt of its row, also for the prompt's own tokens; -1: padding
    source_N: Tensor  # index into the flattened [B*T] hidden states
    target_N: Tensor  # token ids
    response_N: Tensor  # index of the response, in [0, responses), in the order of the rows
    responses: int  # their number
    tokens: int  # their number, without padding

    def to(self, device: torch.device | str) -> PackedRows:
        """Return the batch on `device`."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return PackedRows(**moved, responses=self.responses, tokens=self.tokens)


def row_length(prompt: Ids, responses: Sequence[Ids]) -> int:
    """Return the number of tokens in a packed row of this prompt and these responses."""
    return len(prompt) + sum(len(response) for response in responses)


def attention_mask(rows: PackedRows) -> Tensor:
    """Return the attention mask, bool [B, 1, T, T], indexed [row, -, query, key]; True: the query attends to the key.

    A position attends to itself and to earlier positions of its own segment and of the prompt. Padding attends to padding, so
    that no row of the softmax is empty.
    """
    return mask_of_segments(rows.segment_BT, rows.prompt_BT)


def mask_of_segments(segment_BT: Tensor, prompt_BT: Tensor) -> Tensor:
    """Return the attention mask, bool [B, 1, T, T], from the two tensors of `PackedRows` that determine it."""
    length = segment_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_BT.device).tril()
    key = segment_BT[:, None, :]
    return (causal & ((key == segment_BT[:, :, None]) | (key == prompt_BT[:, :, None])))[:, None]


def join_rows(rows: PackedRows) -> PackedRows:
    """Return the batch as one long row without padding, for attention that uses the segments to separate the rows."""
    real = rows.segment_BT.flatten() >= 0
    new_position = real.cumsum(0) - 1
    one = {name: getattr(rows, name).flatten()[real][None] for name in ("input_ids_BT", "position_BT", "segment_BT", "prompt_BT")}
    return replace(rows, **one, source_N=new_position[rows.source_N])


def pack(rows: Sequence[TokenRow]) -> PackedRows:
    """Return the batch of the rows, padded on the right; each prompt needs at least one token, whose state predicts the first."""
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
    """Return `torch.tensor(values)`, made by numpy, which converts lists four times as fast."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def unpack(rows: PackedRows) -> PackedRows:
    """Return the batch with each response in a row of its own, in the same order, for models that ignore a packed row's mask."""
    length = rows.input_ids_BT.shape[1]
    ids = rows.input_ids_BT.tolist()
    prompt_end: list[int] = []  # for each response, the index of its prompt's last token in the flattened rows
    responses: list[list[int]] = []
    for source, target, owner in zip(rows.source_N.tolist(), rows.target_N.tolist(), rows.response_N.tolist(), strict=True):
        if owner == len(responses):
            prompt_end.append(source)
            responses.append([])
        responses[owner].append(target)
    singles = [(ids[end // length][: end % length + 1], [response]) for end, response in zip(prompt_end, responses, strict=True)]
    return pack(singles).to(rows.input_ids_BT.device)
