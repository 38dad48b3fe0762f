"""The forward pass of a language model over packed rows: log-probabilities and hidden states of the rows' responses.

A packed row is one prompt and several responses, see `text/packing.py`. A model that does not support them (`supports_packing`)
is given one response a row: slower, with the same results in the same order. Shape legend: N predicted tokens, R responses,
H hidden.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.kernels.attention import attention_inputs
from cdpo_lightning.models.kernels.liger import fastest_token_logp
from cdpo_lightning.models.kernels.logprobs import sum_per_response
from cdpo_lightning.text.packing import PackedRows, pack, unpack

_TOLERANCE = 1e-3  # relative difference of two log-probabilities that rounding in float32 explains


def supports_packing(model: nn.Module) -> bool:
    """Return what `detect_packing_support` has recorded; True for a model built here, which needs no detection."""
    return bool(getattr(model, "packing_supported", True))


def response_hidden_states(model: nn.Module, rows: PackedRows) -> Tensor:
    """Return the last hidden states that predict the responses' tokens, shape [N, H]."""
    if supports_packing(model):
        rows, mask = attention_inputs(model, rows)
        inputs = {"input_ids": rows.input_ids_BT, "attention_mask": mask, "position_ids": rows.position_BT}
        return model.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)[rows.source_N]
    single = unpack(rows)
    return model.base_model(**_unpacked_inputs(single)).last_hidden_state.flatten(0, 1)[single.source_N]


def response_token_logp(model: nn.Module, rows: PackedRows) -> Tensor:
    """Return log pi of every token of the responses, end tokens included: nats, shape [N]."""
    if supports_packing(model):
        head = model.get_output_embeddings()
        return fastest_token_logp(response_hidden_states(model, rows), head.weight, rows.target_N, head.bias)
    single = unpack(rows)  # has the same tokens in the same order
    logits = model(**_unpacked_inputs(single)).logits.flatten(0, 1)[single.source_N]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1).gather(1, single.target_N[:, None])[:, 0]


def response_logp(model: nn.Module, rows: PackedRows) -> Tensor:
    """Return log pi(y|x) of every response of the rows, end token included: nats, shape [R]."""
    return sum_per_response(response_token_logp(model, rows), rows.response_N, rows.responses)


def response_features(model: nn.Module, rows: PackedRows) -> Tensor:
    """Return the mean of the hidden states that predict each response's tokens, scaled to unit length, shape [R, H].

    The choice of this feature is ours, not a paper's.
    """
    states = response_hidden_states(model, rows).float()
    total = states.new_zeros(rows.responses, states.shape[1]).index_add(0, rows.response_N, states)
    return nn.functional.normalize(total, dim=1)  # sum and mean have the same direction


def _unpacked_inputs(rows: PackedRows) -> dict[str, Any]:
    """Return the arguments of a model that makes its own positions and causal mask, for rows of one response each."""
    return {"input_ids": rows.input_ids_BT, "attention_mask": (rows.segment_BT >= 0).long(), "use_cache": False}


@torch.no_grad()
def detect_packing_support(model: nn.Module, where: str) -> None:
    """Record on the model whether it supports packed rows; see `supports_packing`.

    Args:
        where: the key and value that named the model, for the message.

    Raises:
        ModelError: even a padded batch of single responses gives other log-probabilities than one sequence at a time.
    """
    model.packing_supported = probe_packing_support(model)  # type: ignore[assignment]
    if model.packing_supported:
        return
    prompt, *responses = _probe_sequences(model)
    padded = response_logp(model, pack([(prompt, responses)])).tolist()
    if not _matches_single_sequences(padded, model, prompt, responses):
        raise ModelError(
            f"{where}: {type(model).__name__} gives log-probabilities {padded} in a padded batch, expected finite numbers and "
            "those of one sequence at a time; choose another model"
        )


@torch.no_grad()
def probe_packing_support(model: nn.Module) -> bool:
    """Return whether a packed row of two responses gives the log-probabilities of one sequence at a time.

    It does not where the model changes its logits after the head (softcap, scale), or ignores the mask and the positions that it
    is given (ALiBi, recurrence).
    """
    prompt, *responses = _probe_sequences(model)
    try:
        packed = response_logp(model, pack([(prompt, responses)])).tolist()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return _matches_single_sequences(packed, model, prompt, responses)


def _probe_sequences(model: nn.Module) -> list[list[int]]:
    """Return a prompt and two responses in the model's vocabulary."""
    vocabulary: int = model.get_input_embeddings().num_embeddings
    return [[i % vocabulary for i in ids] for ids in ([1, 2, 3], [4, 5], [6, 7, 8])]


def _matches_single_sequences(logp: list[float], model: nn.Module, prompt: list[int], responses: list[list[int]]) -> bool:
    expected = [_single_sequence_logp(model, prompt, response) for response in responses]
    return all(abs(a - b) <= _TOLERANCE * (1 + abs(b)) for a, b in zip(logp, expected, strict=True))


def _single_sequence_logp(model: nn.Module, prompt: list[int], response: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())


def compute_type(precision: str) -> torch.dtype:
    """Return the type of the matrix products under Lightning's `precision`."""
    return torch.bfloat16 if precision.startswith("bf16") else torch.float32


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass rounds as it does in training under Lightning's `precision`."""
    dtype = compute_type(precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
