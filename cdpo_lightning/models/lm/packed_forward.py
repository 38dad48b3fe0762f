"""How a language model reads rows: the log-probabilities of their responses, and whether it can read packed rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.kernels.attention import arranged
from cdpo_lightning.models.kernels.liger import fastest_token_logp
from cdpo_lightning.models.kernels.logprobs import sum_per_response
from cdpo_lightning.text.packing import PackedRows, pack, unpack


def reads_packed(model: nn.Module) -> bool:
    """What `settle_rows` noted; a model built here does."""
    return bool(getattr(model, "packs", True))


def response_states(model: nn.Module, rows: PackedRows) -> Tensor:
    """The last hidden states that predict the responses' tokens, [N, H]."""
    if reads_packed(model):
        rows, mask = arranged(model, rows)
        inputs = {"input_ids": rows.input_ids_BT, "attention_mask": mask, "position_ids": rows.position_BT}
        return model.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)[rows.source_N]
    single = unpack(rows)
    return model.base_model(**_own_inputs(single)).last_hidden_state.flatten(0, 1)[single.source_N]


def response_token_logp(model: nn.Module, rows: PackedRows) -> Tensor:
    """log pi of every token of the responses, nats, shape [N], the end tokens included."""
    if reads_packed(model):
        head = model.get_output_embeddings()
        return fastest_token_logp(response_states(model, rows), head.weight, rows.target_N, head.bias)
    single = unpack(rows)  # the same tokens in the same order
    logits = model(**_own_inputs(single)).logits.flatten(0, 1)[single.source_N]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1).gather(1, single.target_N[:, None])[:, 0]


def response_logp(model: nn.Module, rows: PackedRows) -> Tensor:
    """log pi(y|x), nats, shape [R], of every response of the rows, the end token included."""
    return sum_per_response(response_token_logp(model, rows), rows.response_N, rows.responses)


def response_features(model: nn.Module, rows: PackedRows) -> Tensor:
    """The mean of the last hidden states that predict each response's tokens, of unit length, [R, H] (ours)."""
    picked = response_states(model, rows).float()
    total = picked.new_zeros(rows.responses, picked.shape[1]).index_add(0, rows.response_N, picked)
    return nn.functional.normalize(total, dim=1)  # of the sum as of the mean


def _own_inputs(rows: PackedRows) -> dict[str, Any]:
    """What a model that keeps to its own positions and mask is given, of rows of one response each, padded on the right."""
    return {"input_ids": rows.input_ids_BT, "attention_mask": (rows.segment_BT >= 0).long(), "use_cache": False}


@torch.no_grad()
def detect_packing_support(model: nn.Module, where: str) -> None:
    """Notes on the model whether it reads packed rows; if not, its responses are read one a row, which is slower.

    Raises:
        ModelError: it gives other log-probabilities in a padded batch of single responses, too, than one sequence at a time.
    """
    model.packs = packs(model)  # type: ignore[assignment]
    if model.packs:
        return
    prompt, *responses = _probe(model)
    result = response_logp(model, pack([(prompt, responses)])).tolist()
    if not _agree(result, model, prompt, responses):
        raise ModelError(
            f"{where}: {type(model).__name__} gives log-probabilities {result} in a padded batch, expected finite numbers and "
            "those of one sequence at a time; choose another model"
        )


@torch.no_grad()
def packs(model: nn.Module) -> bool:
    """Whether a packed row of two responses gives what the model's own logits give of one sequence at a time.

    Not so where the model changes its logits after the head (a softcap, a scale), or does not keep to the mask and the positions
    that it is given (ALiBi, recurrence).
    """
    prompt, *responses = _probe(model)
    try:
        packed = response_logp(model, pack([(prompt, responses)])).tolist()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return _agree(packed, model, prompt, responses)


def _probe(model: nn.Module) -> list[list[int]]:
    """A prompt and two responses in the model's vocabulary."""
    vocabulary: int = model.get_input_embeddings().num_embeddings
    return [[i % vocabulary for i in ids] for ids in ([1, 2, 3], [4, 5], [6, 7, 8])]


def _agree(result: list[float], model: nn.Module, prompt: list[int], responses: list[list[int]]) -> bool:
    own = [_logp_alone(model, prompt, response) for response in responses]
    return all(abs(f - a) <= 1e-3 * (1 + abs(a)) for f, a in zip(result, own, strict=True))


def _logp_alone(model: nn.Module, prompt: list[int], response: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())


def compute_type(precision: str) -> torch.dtype:
    """The type of the matrix products under Lightning's `precision`."""
    return torch.bfloat16 if precision.startswith("bf16") else torch.float32


def numerics(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a forward pass has the numerics of training under Lightning's `precision`."""
    dtype = compute_type(precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
