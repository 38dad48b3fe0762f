"""Sample responses at temperature 1 without top-p: the distribution that the expected cost is defined over.

Random numbers depend on (seed, prompt, number of the sample), so the samples depend neither on the batch size nor on the order.
Shape legend: B sequences in the batch, V vocabulary.
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
from cdpo_lightning.models.lm.layers import uncompiled
from cdpo_lightning.models.lm.packed_forward import supports_packing
from cdpo_lightning.models.sampling.kv_cache import concatenate_caches, is_preallocated, preallocated_cache

_LOGITS_PER_CHUNK = 2**21  # on a processor: so many logits stay in its cache from one operation to the next
_PROMPT_TOKENS_AT_ONCE = 2**16  # prompt tokens in one forward pass


@dataclass(frozen=True)
class Sample:
    """One sampled response: its tokens (the stop id included if `finished`) and its log-probability in nats."""

    prompt: int
    tokens: tuple[int, ...]
    finished: bool
    logp: float


def uniforms(seed: int, prompt: Sequence[int], samples: int, steps: int) -> np.ndarray:
    """Return uniform numbers [samples, steps] for a prompt; those of sample i do not depend on the number of samples."""
    digest = hashlib.blake2b(np.asarray(prompt, dtype=np.int64).tobytes(), digest_size=8).digest()
    key = np.array([seed % 2**64, int.from_bytes(digest, "little")], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((samples, steps), dtype=np.float32)


def _sample_tokens(logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return one token per row [B], by inversion of the cumulative distribution, and its log-probability [B], nats."""
    rows = max(1, _LOGITS_PER_CHUNK // logits_BV.shape[1]) if logits_BV.device.type == "cpu" else len(logits_BV)
    chunks = [_invert_cumulative(*chunk) for chunk in zip(logits_BV.split(rows), uniform_B.split(rows), strict=True)]
    token, logp = zip(*chunks, strict=True)
    return torch.cat(token), torch.cat(logp)


def _invert_cumulative(logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    logp_BV = logits_BV.float().log_softmax(-1)
    cumulative = logp_BV.exp().cumsum_(-1)
    token = torch.searchsorted(cumulative, (uniform_B * cumulative[:, -1])[:, None], right=True)
    token = token.clamp(max=logits_BV.shape[-1] - 1)
    return token[:, 0], logp_BV.gather(1, token)[:, 0]


def needs_lockstep(model: nn.Module) -> bool:
    """Return whether all ranks have to run the model equally often, because they gather its weights layer by layer."""
    return bool(getattr(model, "needs_lockstep", False))


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the token ids [B, T] of the prompts, padded on the left."""
    length = max(map(len, prompts))
    return torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=device)


def _left_mask(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the attention mask [B, T] of the prompts padded on the left."""
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    position = torch.arange(int(lengths.max()), device=device)
    return (position >= lengths.max() - lengths[:, None]).long()


def _groups_of_similar_length(prompts: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
    """Split the prompts, in order, into groups that waste little padding and hold at most `_PROMPT_TOKENS_AT_ONCE` tokens.

    In a group no prompt is shorter than the first, or longer than it by more than an eighth or 4 tokens, whichever is more.
    """
    groups: list[list[Sequence[int]]] = []
    for prompt in prompts:
        length = len(prompt)
        first = len(groups[-1][0]) if groups else 0
        if groups and first <= length <= first + max(4, first // 8) and length * (len(groups[-1]) + 1) <= _PROMPT_TOKENS_AT_ONCE:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return list(groups)


class _Batch:
    """Sequences that are sampled together; ended ones are removed to save time."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], samples: int, uniform: Tensor) -> None:
        self.model, self.uniform = model, uniform
        self.logits, self.cache = self._read_prompts(prompts, samples)
        self.mask = _left_mask(prompts, uniform.device).repeat_interleave(samples, 0)
        self.row = torch.arange(len(prompts) * samples, device=uniform.device)
        self.ended = torch.zeros_like(self.row, dtype=torch.bool)

    def _read_prompts(self, prompts: Sequence[Sequence[int]], samples: int) -> tuple[Tensor, DynamicCache]:
        """Return the logits after every prompt and one cache of all prompts, each `samples` times.

        Prompts of similar length share a forward pass, where their caches can be concatenated afterwards.
        """
        config, device = self.model.config, self.uniform.device
        in_groups = supports_packing(self.model) and not needs_lockstep(self.model) and is_preallocated(preallocated_cache(config))
        logits, caches = [], []
        for group in _groups_of_similar_length(prompts) if in_groups else [prompts]:
            ids, mask = _left_padded(group, device), _left_mask(group, device)
            cache = preallocated_cache(config)
            logits.append(self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache).repeat_interleave(samples, 0))
            caches.append(cache)
        if in_groups:
            return torch.cat(logits), concatenate_caches(caches, config, samples, max(map(len, prompts)))
        caches[0].batch_repeat_interleave(samples)
        return logits[0], caches[0]

    def _forward(self, ids: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
        inputs = {"input_ids": ids, "past_key_values": cache, "use_cache": True}
        if not supports_packing(self.model):  # it changes the logits after its head, or makes its own positions
            options = {"position_ids": position} if "position_ids" in signature(self.model.forward).parameters else {}
            return self.model(attention_mask=mask, **inputs, **options).logits[:, -1]
        attention = None if bool(mask.all()) else mask
        hidden = self.model.base_model(attention_mask=attention, position_ids=position, **inputs).last_hidden_state[:, -1]
        return self.model.get_output_embeddings()(hidden)

    def step(self, number: int, stops: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the rows that had not ended, their next tokens and log-probabilities; and the next tokens of all rows."""
        token, logp = _sample_tokens(self.logits, self.uniform[self.row, number])
        active = ~self.ended
        result = self.row[active], token[active], logp[active]
        self.ended = self.ended | torch.isin(token, stops)
        return *result, token

    def drop_ended(self, token: Tensor) -> Tensor:
        """Remove the ended rows if they are a quarter or more, but not if all have ended; return the tokens of the kept rows."""
        ended = int(self.ended.sum())
        if ended * 4 < len(self.row) or ended == len(self.row):
            return token
        keep = (~self.ended).nonzero()[:, 0]
        self.cache.batch_select_indices(keep)
        self.mask, self.row, self.ended = self.mask[keep], self.row[keep], self.ended[keep]
        return token[keep]

    def advance(self, token: Tensor) -> None:
        """Run the model on the sampled tokens."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.row), 1)], 1)
        self.logits = self._forward(token[:, None], self.mask, self.mask.sum(1, keepdim=True) - 1, self.cache)


def _sample_batch(
    model: nn.Module, prompts: Sequence[Sequence[int]], uniform: Tensor, stops: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens [rows, steps] (padded with a stop id), lengths [rows] and log-probabilities [rows], nats, of all rows."""
    rows, steps = uniform.shape
    tokens = stops[:1].repeat(rows, steps)
    length = torch.zeros(rows, dtype=torch.long, device=uniform.device)
    total = torch.zeros(rows, device=uniform.device)
    batch = _Batch(model, prompts, rows // len(prompts), uniform)
    for step in range(steps):
        row, token, logp, all_tokens = batch.step(step, stops)
        tokens[row, step] = token
        length[row] += 1
        total[row] += logp
        ended = bool(batch.ended.all())
        if step == steps - 1 or (ranks.all_ranks(ended) if needs_lockstep(model) else ended):
            break
        batch.advance(batch.drop_ended(all_tokens))
    return tokens, length, total


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    samples_per_prompt: int,
    max_new_tokens: int,
    stops: Sequence[int],
    seed: int,
    batch_size: int,
) -> list[Sample]:
    """Return `samples_per_prompt` responses to each prompt (token ids), prompt by prompt; each of `stops` ends a response.

    The model is run in the mode (training or evaluation) in which it is passed.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    prompts_per_batch = max(1, batch_size // samples_per_prompt)
    device = next(model.parameters()).device
    ends = torch.tensor(list(stops), device=device)
    samples: dict[int, list[Sample]] = {}
    batches = [order[start : start + prompts_per_batch] for start in range(0, len(order), prompts_per_batch)]
    missing = ranks.max_over_ranks(len(batches)) - len(batches) if needs_lockstep(model) else 0
    with uncompiled(model):
        for batch in batches:
            drawn = [uniforms(seed, prompts[i], samples_per_prompt, max_new_tokens) for i in batch]
            uniform = torch.from_numpy(np.concatenate(drawn)).to(device)
            tokens, length, total = (t.cpu() for t in _sample_batch(model, [prompts[i] for i in batch], uniform, ends))
            for j, i in enumerate(batch):
                own = slice(j * samples_per_prompt, (j + 1) * samples_per_prompt)
                rows = zip(tokens[own].tolist(), length[own].tolist(), total[own].tolist(), strict=True)
                samples[i] = [Sample(i, tuple(ids[:n]), ids[n - 1] in stops, logp) for ids, n, logp in rows]
        for _ in range(missing):  # run the model as often as the rank with the most batches
            _sample_batch(model, [[stops[0]]], torch.zeros(1, max_new_tokens, device=device), ends)
    return [s for i in range(len(prompts)) for s in samples[i]]
