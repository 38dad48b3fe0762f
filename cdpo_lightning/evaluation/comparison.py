"""Compares policies on the same prompts: differences with a paired bootstrap, and win rates."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cdpo_lightning.config import methods
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.maths.statistics import Estimate, cluster_means, clustered_mean, paired_bootstrap, win_rates


def opponents(measured: Mapping[str, Measurement]) -> list[str]:
    """Return the measured policies that others are compared with: those marked as opponents in `METHODS` or `NOT_TRAINED`.

    The reference is left out if a method that trains nothing was measured, because its policy is the reference.
    """
    repeated = any(map(methods.is_reference, measured))
    return [name for name in methods.opponents() if name in measured and not (name == methods.REFERENCE and repeated)]


def compare(measured: Mapping[str, Measurement], seed: int) -> Metrics:
    """Return the comparisons of each policy, except the reference, with each opponent.

    `eval/<policy>/minus_<other>/*` are differences of means, `eval/<policy>/win_rate_vs_<other>` compares rewards.

    Args:
        measured: the measurement of each policy, all on the same prompts.
        seed: of the bootstrap.
    """
    metrics: Metrics = {}
    for other in opponents(measured):
        for policy, own in measured.items():
            if policy not in (other, methods.REFERENCE):
                metrics |= _against(f"eval/{policy}", other, own, measured[other], seed)
    return metrics


def _against(prefix: str, other: str, own: Measurement, theirs: Measurement, seed: int) -> Metrics:
    metrics: Metrics = {}
    for name, values in (("reward", _rewards), ("cost", _costs), ("unsafe_rate", _unsafe)):
        difference = cluster_means(values(own), own.prompt) - cluster_means(values(theirs), theirs.prompt)
        metrics |= _interval(f"{prefix}/minus_{other}/{name}", paired_bootstrap(difference, seed))
    prompts = len(own.prompt.unique())
    wins = win_rates(own.scores["reward"].view(prompts, -1), theirs.scores["reward"].view(prompts, -1))
    return metrics | _interval(f"{prefix}/win_rate_vs_{other}", clustered_mean(wins, own.prompt.unique()))


def _rewards(measured: Measurement) -> Tensor:
    return measured.scores["reward"]


def _costs(measured: Measurement) -> Tensor:
    return measured.scores["cost"]


def _unsafe(measured: Measurement) -> Tensor:
    return (measured.scores["cost"] > 0).double()


def _interval(key: str, estimate: Estimate) -> Metrics:
    return {key: estimate.mean, f"{key}_ci_low": estimate.low, f"{key}_ci_high": estimate.high}
