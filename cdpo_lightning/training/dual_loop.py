"""The settings of the dual loop, and the measurement of one round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.updates import Update
from cdpo_lightning.data.batching import choose_prompts
from cdpo_lightning.evaluation.evaluator import Measurement, PolicyEvaluator
from cdpo_lightning.streams import Stream, stream_seed


@dataclass(frozen=True)
class DualLoop:
    """The constraints and their update, and how often and on how many samples the constraints are measured."""

    constraints: Sequence[Constraint]
    update: Update | None  # None: lambda stays
    beta: float  # KL weight, reward units per nat
    every_k_epochs: int
    prompts: int  # sampled in a round; 0: all
    samples_per_prompt: int
    seed: int

    def round_prompts(self, count: int, number: int) -> Tensor:
        """Return the numbers of the prompts of round `number`, drawn from `count` prompts, in ascending order."""
        return choose_prompts(count, self.prompts, stream_seed(self.seed, Stream.DUAL_PROMPTS, number))

    def samples_seed(self, number: int) -> int:
        """Return the seed of the samples of round `number`."""
        return stream_seed(self.seed, Stream.DUAL_SAMPLES, number)


def measure_round(loop: DualLoop, evaluator: PolicyEvaluator, model: nn.Module, prompts: Sequence[str], number: int) -> Measurement:
    """Return the measurement of the model's samples in round `number`; prompt numbers refer to `prompts`, all those of the run."""
    chosen = loop.round_prompts(len(prompts), number)
    measured = evaluator.measure(model, [prompts[i] for i in chosen.tolist()], loop.samples_per_prompt, loop.samples_seed(number))
    return replace(measured, prompt=chosen[measured.prompt])
