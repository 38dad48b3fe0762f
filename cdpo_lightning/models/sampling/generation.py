"""Sampling at temperature 1, without top-p: what the expected cost is an expectation over.

Random numbers belong to (seed, prompt, sample) and not to the batch, so the samples do not depend on batch size or order.
Shape legend: B sequences side by side, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from cdpo_lightning import ranks
from cdpo_lightning.models.lm.layers import eagerly
from cdpo_lightning.models.lm.packed_forward import reads_packed
from cdpo_lightning.models.sampling.kv_cache import growing_cache, grows_in_place, joined

_CHOSEN_AT_ONCE = 2**21  # logits, on a processor: what follows on them is still in its cache
_AT_ONCE = 2**16  # tokens of prompts read in one forward pass


@dataclass(frozen=True)
class Sample:
    """One sampled response: its tokens (the end token included if `finished`) and its log-probability in nats."""

    prompt: int
    tokens: tuple[int, ...]
    finished: bool
    logp: float


def uniforms(seed: int, prompt: Sequence[int], samples: int, steps: int) -> np.ndarray:
    """Uniform numbers [samples, steps] of a prompt; those of sample i do not depend on how many are asked for."""
    digest = hashlib.blake2b(np.asarray(prompt, dtype=np.int64).tobytes(), digest_size=8).digest()
    key = np.array([seed % 2**64, int.from_bytes(digest, "little")], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((samples, steps), dtype=np.float32)


def _choose(logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] by inversion of the cumulative distribution, and their log-probabilities [B]."""
    rows = max(1, _CHOSEN_AT_ONCE // logits_BV.shape[1]) if logits_BV.device.type == "cpu" else len(logits_BV)
    parts = [_chosen(*part) for part in zip(logits_BV.split(rows), uniform_B.split(rows), strict=True)]
    token, logp = zip(*parts, strict=True)
    return torch.cat(token), torch.cat(logp)


def _chosen(logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    logp_BV = logits_BV.float().log_softmax(-1)
    cumulative = logp_BV.exp().cumsum_(-1)
    token = torch.searchsorted(cumulative, (uniform_B * cumulative[:, -1])[:, None], right=True)
    token = token.clamp(max=logits_BV.shape[-1] - 1)
    return token[:, 0], logp_BV.gather(1, token)[:, 0]


def in_step(model: nn.Module) -> bool:
    """Whether the ranks have to run the model equally often, as they gather it layer by layer."""
    return bool(getattr(model, "in_step", False))


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids [B, T]."""
    length = max(map(len, prompts))
    return torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=device)


def _left_mask(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """1 where a left-padded row [B, T] has a token, 0 before it."""
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    position = torch.arange(int(lengths.max()), device=device)
    return (position >= lengths.max() - lengths[:, None]).long()


def _alike(prompts: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
    """Runs of neighbours, none shorter than the first and at most an eighth, or 4 tokens, longer; not too many tokens at once."""
    parts: list[list[Sequence[int]]] = []
    for prompt in prompts:
        length = len(prompt)
        first = len(parts[-1][0]) if parts else 0
        if parts and first <= length <= first + max(4, first // 8) and length * (len(parts[-1]) + 1) <= _AT_ONCE:
            parts[-1].append(prompt)
        else:
            parts.append([prompt])
    return list(parts)


class _Batch:
    """Sequences that grow side by side; those that end leave, so that no time goes into padding."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], samples: int, uniform: Tensor) -> None:
        self.model, self.uniform = model, uniform
        self.logits, self.cache = self._read(prompts, samples)
        self.mask = _left_mask(prompts, uniform.device).repeat_interleave(samples, 0)
        self.row = torch.arange(len(prompts) * samples, device=uniform.device)
        self.ended = torch.zeros_like(self.row, dtype=torch.bool)

    def _read(self, prompts: Sequence[Sequence[int]], samples: int) -> tuple[Tensor, DynamicCache]:
        """The logits behind every prompt and the cache of all, each `samples` times; those of about one length are read at once."""
        config, device = self.model.config, self.uniform.device
        apart = reads_packed(self.model) and not in_step(self.model) and grows_in_place(growing_cache(config))
        logits, caches = [], []
        for part in _alike(prompts) if apart else [prompts]:
            ids, mask = _left_padded(part, device), _left_mask(part, device)
            cache = growing_cache(config)
            logits.append(self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache).repeat_interleave(samples, 0))
            caches.append(cache)
        if apart:
            return torch.cat(logits), joined(caches, config, samples, max(map(len, prompts)))
        caches[0].batch_repeat_interleave(samples)
        return logits[0], caches[0]

    def _forward(self, ids: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
        read = {"input_ids": ids, "past_key_values": cache, "use_cache": True}
        if not reads_packed(self.model):  # its logits are not those of its head, or its positions its own
            options = {"position_ids": position} if "position_ids" in signature(self.model.forward).parameters else {}
            return self.model(attention_mask=mask, **read, **options).logits[:, -1]
        attention = None if bool(mask.all()) else mask
        hidden = self.model.base_model(attention_mask=attention, position_ids=position, **read).last_hidden_state[:, -1]
        return self.model.get_output_embeddings()(hidden)

    def step(self, number: int, eos: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows still alive, their next tokens and log-probabilities; and the tokens of all rows."""
        token, logp = _choose(self.logits, self.uniform[self.row, number])
        alive = ~self.ended
        result = self.row[alive], token[alive], logp[alive]
        self.ended = self.ended | (token == eos)
        return *result, token

    def drop_ended(self, token: Tensor) -> Tensor:
        """Removes ended rows once a quarter has ended; the tokens of those that stay. If all have ended, they wait."""
        ended = int(self.ended.sum())
        if ended * 4 < len(self.row) or ended == len(self.row):
            return token
        keep = (~self.ended).nonzero()[:, 0]
        self.cache.batch_select_indices(keep)
        self.mask, self.row, self.ended = self.mask[keep], self.row[keep], self.ended[keep]
        return token[keep]

    def advance(self, token: Tensor) -> None:
        """Reads the chosen tokens."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.row), 1)], 1)
        self.logits = self._forward(token[:, None], self.mask, self.mask.sum(1, keepdim=True) - 1, self.cache)


def _sample_batch(model: nn.Module, prompts: Sequence[Sequence[int]], uniform: Tensor, eos: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [rows, steps] (eos past the end), lengths [rows] and log-probabilities [rows] of all rows."""
    rows, steps = uniform.shape
    tokens = torch.full((rows, steps), eos, device=uniform.device)
    length = torch.zeros(rows, dtype=torch.long, device=uniform.device)
    total = torch.zeros(rows, device=uniform.device)
    batch = _Batch(model, prompts, rows // len(prompts), uniform)
    for number in range(steps):
        row, token, logp, every = batch.step(number, eos)
        tokens[row, number] = token
        length[row] += 1
        total[row] += logp
        ended = bool(batch.ended.all())
        if number == steps - 1 or (ranks.all_ranks(ended) if in_step(model) else ended):
            break
        batch.advance(batch.drop_ended(every))
    return tokens, length, total


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    samples_per_prompt: int,
    max_new_tokens: int,
    eos: int,
    seed: int,
    batch_size: int,
) -> list[Sample]:
    """`samples_per_prompt` responses to each prompt (token ids), prompt by prompt, sampled from the model as it is."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    group = max(1, batch_size // samples_per_prompt)
    device = next(model.parameters()).device
    values: dict[int, list[Sample]] = {}
    groups = [order[start : start + group] for start in range(0, len(order), group)]
    spare = ranks.max_over_ranks(len(groups)) - len(groups) if in_step(model) else 0
    with eagerly(model):
        for chosen in groups:
            drawn = [uniforms(seed, prompts[i], samples_per_prompt, max_new_tokens) for i in chosen]
            uniform = torch.from_numpy(np.concatenate(drawn)).to(device)
            tokens, length, total = (t.cpu() for t in _sample_batch(model, [prompts[i] for i in chosen], uniform, eos))
            for j, i in enumerate(chosen):
                part = slice(j * samples_per_prompt, (j + 1) * samples_per_prompt)
                rows = zip(tokens[part].tolist(), length[part].tolist(), total[part].tolist(), strict=True)
                values[i] = [Sample(i, tuple(ids[:n]), ids[n - 1] == eos, logp) for ids, n, logp in rows]
        for _ in range(spare):  # to run as often as the others
            _sample_batch(model, [[eos]], torch.zeros(1, max_new_tokens, device=device), eos)
    return [s for i in range(len(prompts)) for s in values[i]]
