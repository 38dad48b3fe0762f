"""What a method takes, counted alike for all methods: `budget/<who>/*`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdpo_lightning.evaluation.evaluator import Measurement, PolicyEvaluator, SampleCounts
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.training.callbacks.compute_meter import ComputeMeter


@dataclass(frozen=True)
class ComputeBudget:
    """Compute of a method. `metrics` reports it."""

    trained_tokens: int = 0  # read with a gradient, summed over the networks that learn from them
    sampled_tokens: int = 0
    scorer_forwards: int = 0  # texts run through a scorer, once for each scorer, now or when the store got them
    models_resident: int = 0  # networks in use at one time
    wall_seconds: float = 0.0

    def __add__(self, other: ComputeBudget) -> ComputeBudget:
        """Return the budget of both, one after the other: counts add up, of the networks in use the larger number counts."""
        added = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return ComputeBudget(**{**added, "models_resident": max(self.models_resident, other.models_resident)})

    def metrics(self, who: str) -> Metrics:
        """Return `budget/<who>/*`, without the seconds where nothing was timed."""
        return {f"budget/{who}/{name}": value for name, value in vars(self).items() if value or name != "wall_seconds"}


def of_samples(measured: Sequence[Measurement]) -> ComputeBudget:
    """Return what drawing and scoring the samples took."""
    return ComputeBudget(
        sampled_tokens=sum(one.tokens for one in measured),
        scorer_forwards=sum(len(one.scores) * one.scored for one in measured),
    )


def of_training(meter: ComputeMeter, counts: SampleCounts, scorers: int, networks: int) -> ComputeBudget:
    """Return what a stage of training took, its dual rounds included; `networks` were in use at one time."""
    return ComputeBudget(meter.tokens, counts.tokens, scorers * counts.scored, networks, meter.seconds)


def round_networks(evaluator: PolicyEvaluator) -> int:
    """Return how many networks a dual round uses besides the policy: the reference, and the scorers that are models."""
    return 1 + sum(isinstance(scorer, ModelScorer) for scorer in evaluator.scorers.values())
