"""What a method spent, counted alike for all: `budget/<who>/*`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdpo_lightning.evaluation.evaluator import Measurement, ModelScorer, PolicyEvaluator
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.training.callbacks.compute_meter import ComputeMeter
from cdpo_lightning.training.data_modules.pair_data import DualState

SCORERS = 2  # a sample of a policy is run through the reward and the cost scorer


@dataclass(frozen=True)
class ComputeBudget:
    """Tokens read with a gradient (summed over the networks that learn from them) and tokens sampled; texts run through a scorer,
    one for each scorer, whether now or when the store got them; networks in use at one time; seconds."""

    trained_tokens: int = 0
    sampled_tokens: int = 0
    scorer_forwards: int = 0
    models_resident: int = 0
    wall_seconds: float = 0.0

    def __add__(self, other: ComputeBudget) -> ComputeBudget:
        """One after the other: the counts add up, the networks in use are the larger number."""
        added = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return ComputeBudget(**{**added, "models_resident": max(self.models_resident, other.models_resident)})

    def metrics(self, who: str) -> Metrics:
        """`budget/<who>/*`; without the seconds where nothing was timed."""
        return {f"budget/{who}/{name}": value for name, value in vars(self).items() if value or name != "wall_seconds"}


def sampled(measured: Sequence[Measurement]) -> ComputeBudget:
    """What drawing and scoring the samples took."""
    return ComputeBudget(
        sampled_tokens=sum(one.tokens for one in measured), scorer_forwards=SCORERS * sum(one.scored for one in measured)
    )


def trained(budget: ComputeMeter, state: DualState, models: int) -> ComputeBudget:
    """What a stage of training took, its rounds included."""
    return ComputeBudget(budget.tokens, state.sampled_tokens, SCORERS * state.scored, models, budget.seconds)


def networks_of(evaluator: PolicyEvaluator) -> int:
    """Networks that a round uses beside the policy: the reference, and the scorers that are models."""
    return 1 + sum(isinstance(scorer, ModelScorer) for scorer in (evaluator.reward, evaluator.cost))
