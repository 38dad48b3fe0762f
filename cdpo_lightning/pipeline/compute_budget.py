"""The compute of a method, counted in the same way for all methods: `budget/<who>/*`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdpo_lightning.evaluation.evaluator import Measurement, PolicyEvaluator, SampleCounts
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.training.callbacks.compute_meter import ComputeMeter


@dataclass(frozen=True)
class ComputeBudget:
    """The compute of a method."""

    trained_tokens: int = 0  # tokens with a gradient, summed over the networks that are trained on them
    sampled_tokens: int = 0
    scorer_forwards: int = 0  # texts times scorers, also if the store already had the scores
    models_resident: int = 0  # networks in use at one time
    wall_seconds: float = 0.0

    def __add__(self, other: ComputeBudget) -> ComputeBudget:
        """Return the compute of both in sequence: the sum of all counts, the maximum of `models_resident`."""
        added = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return ComputeBudget(**{**added, "models_resident": max(self.models_resident, other.models_resident)})

    def metrics(self, who: str) -> Metrics:
        """Return `budget/<who>/*`, without `wall_seconds` if nothing was timed."""
        return {f"budget/{who}/{name}": value for name, value in vars(self).items() if value or name != "wall_seconds"}


def of_samples(measured: Sequence[Measurement]) -> ComputeBudget:
    """Return the compute of drawing and scoring the samples."""
    return ComputeBudget(
        sampled_tokens=sum(one.tokens for one in measured),
        scorer_forwards=sum(len(one.scores) * one.scored for one in measured),
    )


def of_training(meter: ComputeMeter, counts: SampleCounts, scorers: int, networks: int) -> ComputeBudget:
    """Return the compute of a training stage with its dual rounds; `networks` is the number in use at one time."""
    return ComputeBudget(meter.tokens, counts.tokens, scorers * counts.scored, networks, meter.seconds)


def round_networks(evaluator: PolicyEvaluator) -> int:
    """Return the number of networks that a dual round uses in addition to the policy: the reference and the model scorers."""
    return 1 + sum(isinstance(scorer, ModelScorer) for scorer in evaluator.scorers.values())
