"""Measures a policy on its own samples: their scores by name, and their log-probabilities under policy and reference.

Each rank works on its share of the texts or prompts, and every rank gets the whole result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cdpo_lightning import ranks
from cdpo_lightning.models.lm.packed_forward import precision_context
from cdpo_lightning.models.lm.placement import on_device
from cdpo_lightning.models.lm.response_logp import local_response_logp, response_logp_of_rows
from cdpo_lightning.models.sampling.generation import Sample, sample
from cdpo_lightning.models.sampling.vllm_generation import VLLM
from cdpo_lightning.scorers.scorer import Scorer, Text
from cdpo_lightning.text.packing import TokenRow
from cdpo_lightning.text.templates import Encoder


@dataclass(frozen=True)
class Measurement:
    """N samples of a policy, with their scores and log-probabilities; tensors have shape [N]."""

    samples: list[Sample]
    texts: list[Text]
    prompt: Tensor  # number of the prompt
    scores: dict[str, Tensor]  # by name, float64
    policy_logp: Tensor  # nats
    reference_logp: Tensor  # nats; nan where the policy reads other tokens than the reference
    scored: int  # distinct texts

    @property
    def tokens(self) -> int:
        """Number of tokens of all samples, the end tokens included."""
        return sum(len(s.tokens) for s in self.samples)

    def facts(self) -> dict[str, float]:
        """Return the metrics of the samples for the history: mean reward, tokens per response, share without an end token."""
        return {
            "dual/expected_reward": float(self.scores["reward"].mean()),
            "dual/response_tokens": self.tokens / len(self.samples),
            "dual/unfinished": sum(not s.finished for s in self.samples) / len(self.samples),
        }


@dataclass(frozen=True)
class SampleCounts:
    """The counts over the rounds of a method: samples, their tokens, and distinct texts that were scored."""

    samples: int = 0
    tokens: int = 0
    scored: int = 0

    def plus(self, measured: Measurement) -> SampleCounts:
        """Return the counts with one more measurement."""
        return SampleCounts(self.samples + len(measured.samples), self.tokens + measured.tokens, self.scored + measured.scored)


@dataclass(frozen=True)
class PolicyEvaluator:
    """Measures policies: draws samples, scores them, and computes their log-probabilities under policy and reference."""

    scorers: Mapping[str, Scorer]
    reference: nn.Module
    encoder: Encoder
    batch_size: int
    sample_batch: int
    precision: str
    engine: VLLM | None = None  # samples in place of the policy; None: the policy samples itself

    def draw(
        self, model: nn.Module, prompts: Sequence[str], samples_per_prompt: int, seed: int, encoder: Encoder
    ) -> tuple[list[Sample], list[Text]]:
        """Return `samples_per_prompt` samples of the policy for each prompt, prompt by prompt, and their texts."""
        training = model.training
        model.eval()
        ids = [encoder.prompt(prompt) for prompt in prompts]
        drawn = ranks.map_over_ranks(ids, lambda own: self._samples(model, own, samples_per_prompt, seed, encoder))
        model.train(training)
        samples = [replace(s, prompt=number) for number, own in enumerate(drawn) for s in own]
        return samples, [(prompts[s.prompt], encoder.decode(s.tokens)) for s in samples]

    def measure(
        self, model: nn.Module, prompts: Sequence[str], samples_per_prompt: int, seed: int, encoder: Encoder | None = None
    ) -> Measurement:
        """Return the measurement of `samples_per_prompt` samples of the policy for each prompt.

        Args:
            encoder: of a policy with another tokenizer than the reference; `reference_logp` is then nan.
        """
        samples, texts = self.draw(model, prompts, samples_per_prompt, seed, encoder or self.encoder)
        unknown = torch.full((len(samples),), torch.nan, dtype=torch.float64)
        return Measurement(
            samples=samples,
            texts=texts,
            prompt=torch.tensor([s.prompt for s in samples]),
            scores={name: scorer.score(texts) for name, scorer in self.scorers.items()},
            policy_logp=torch.tensor([s.logp for s in samples], dtype=torch.float64),
            reference_logp=unknown if encoder else self._reference_logp([self.encoder.prompt(p) for p in prompts], samples),
            scored=len(set(texts)),
        )

    def _samples(
        self, model: nn.Module, prompts: list[tuple[int, ...]], per_prompt: int, seed: int, encoder: Encoder
    ) -> list[list[Sample]]:
        """Return the samples of each prompt, drawn by this rank."""
        with on_device(model) as device, precision_context(self.precision, device):
            if self.engine:
                result = self._from_engine(self.engine, model, prompts, per_prompt, seed, encoder)
            else:
                result = sample(model, prompts, per_prompt, encoder.max_response, encoder.stops, seed, self.sample_batch)
        return [result[i : i + per_prompt] for i in range(0, len(result), per_prompt)]

    def _from_engine(
        self, engine: VLLM, model: nn.Module, prompts: list[tuple[int, ...]], per_prompt: int, seed: int, encoder: Encoder
    ) -> list[Sample]:
        """Return samples of the engine, with log-probabilities that the policy itself computes."""
        drawn = engine.tokens(model, prompts, per_prompt, encoder.max_response, encoder.stops, seed)
        rows: list[TokenRow] = [(ids, [tokens]) for ids, responses in zip(prompts, drawn, strict=True) for tokens in responses]
        owners = [number for number, responses in enumerate(drawn) for _ in responses]
        logp = [float(value) for value in local_response_logp(model, rows, self.batch_size, self.precision)]
        return [Sample(p, tuple(r[0]), r[0][-1] in encoder.stops, x) for p, (_, r), x in zip(owners, rows, logp, strict=True)]

    def _reference_logp(self, prompts: list[tuple[int, ...]], samples: list[Sample]) -> Tensor:
        """Return log pi_ref of each sample, nats, [N]; equal samples are run once."""
        unique = list(dict.fromkeys((s.prompt, s.tokens) for s in samples))
        rows = [(prompts[prompt], [tokens]) for prompt, tokens in unique]
        result = response_logp_of_rows(self.reference, rows, self.batch_size, self.precision)
        number = {key: i for i, key in enumerate(unique)}
        return result[[number[s.prompt, s.tokens] for s in samples]]
