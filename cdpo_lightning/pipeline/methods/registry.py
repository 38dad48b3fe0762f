"""The policy stage: every method by the trainer that its recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from cdpo_lightning.config import ResolvedMethod
from cdpo_lightning.console import Screen
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.pipeline.methods.ppo import train_ppo
from cdpo_lightning.pipeline.methods.preference import Trained, train_preference
from cdpo_lightning.pipeline.methods.primal_dual import train_primal_dual
from cdpo_lightning.pipeline.prepare import Prepared
from cdpo_lightning.pipeline.sft import sft_compute


def the_reference(prepared: Prepared, plan: ResolvedMethod, screen: Screen) -> Trained:
    """The reference itself, for `method=sft`."""
    return Trained(prepared.reference, {}, {}, sft_compute(prepared.bench))


TRAINERS: Mapping[str, Callable[[Prepared, ResolvedMethod, Screen], Trained]] = {
    "none": the_reference,
    "preference": train_preference,
    "primal_dual": train_primal_dual,
    "ppo": train_ppo,
}


def train_policy(prepared: Prepared, who: str, screen: Screen) -> tuple[nn.Module, Metrics]:
    """The policy `who` and what its training found: `budget/<who>/*`, and of the run's own `dual/*` and `speed/*` too."""
    config = prepared.bench.config
    plan = config.plan(who)
    result = TRAINERS[plan.spec.trainer](prepared, plan, screen)
    metrics = result.compute.metrics(who)
    if who == config.who:
        return result.model, metrics | result.dual | result.speed
    return result.model, metrics | ({f"dual/{who}/lambda": result.dual["dual/lambda"]} if result.dual else {})
