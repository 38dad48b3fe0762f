"""What a method spent, counted alike for all: `budget/<who>/*`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdpo_lightning.evaluation.evaluator import Judge, Measurement, ModelScorer
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.training.callbacks.compute_meter import Budget
from cdpo_lightning.training.data_modules.pair_data import DualState

SCORERS = 2  # a sample of a policy is run through the reward and the cost scorer


@dataclass(frozen=True)
class Spent:
    """Tokens read with a gradient (summed over the networks that learn from them) and tokens sampled; texts run through a scorer,
    one for each scorer, whether now or when the store got them; networks in use at one time; seconds."""

    trained_tokens: int = 0
    sampled_tokens: int = 0
    scorer_forwards: int = 0
    models_resident: int = 0
    wall_seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        """One after the other: the counts add up, the networks in use are the larger number."""
        added = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Spent(**{**added, "models_resident": max(self.models_resident, other.models_resident)})

    def metrics(self, who: str) -> Metrics:
        """`budget/<who>/*`; without the seconds where nothing was timed."""
        return {f"budget/{who}/{name}": value for name, value in vars(self).items() if value or name != "wall_seconds"}


def sampled(measured: Sequence[Measurement]) -> Spent:
    """What drawing and scoring the samples took."""
    return Spent(sampled_tokens=sum(one.tokens for one in measured), scorer_forwards=SCORERS * sum(one.scored for one in measured))


def trained(budget: Budget, state: DualState, models: int) -> Spent:
    """What a stage of training took, its rounds included."""
    return Spent(budget.tokens, state.sampled_tokens, SCORERS * state.scored, models, budget.seconds)


def networks_of(judge: Judge) -> int:
    """Networks that a round uses beside the policy: the reference, and the scorers that are models."""
    return 1 + sum(isinstance(scorer, ModelScorer) for scorer in (judge.reward, judge.cost))
