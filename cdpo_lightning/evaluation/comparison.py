"""Policies against one another on the same prompts: differences with a paired bootstrap, and win rates."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.maths.paired import cluster_means, paired_bootstrap, win_rates
from cdpo_lightning.maths.statistics import Estimate, clustered_mean

OPPONENTS = ("sft", "dpo", "reference", "policy_1")


def opponents(measured: Mapping[str, Measurement]) -> list[str]:
    """Against whom everyone is compared: SFT, DPO, the first of several judged policies; the reference where there is no SFT."""
    return [who for who in OPPONENTS if who in measured and not (who == "reference" and "sft" in measured)]


def compare(measured: Mapping[str, Measurement], seed: int) -> Metrics:
    """`eval/<who>/minus_<other>/*`: differences of means; `eval/<who>/win_rate_vs_<other>`: by the reward scorer."""
    metrics: Metrics = {}
    for other in opponents(measured):
        for who, own in measured.items():
            if who not in (other, "reference"):
                metrics |= _against(f"eval/{who}", other, own, measured[other], seed)
    return metrics


def _against(prefix: str, other: str, own: Measurement, theirs: Measurement, seed: int) -> Metrics:
    result: Metrics = {}
    for name, values in (("reward", _rewards), ("cost", _costs), ("unsafe_rate", _unsafe)):
        difference = cluster_means(values(own), own.prompt) - cluster_means(values(theirs), theirs.prompt)
        result |= _interval(f"{prefix}/minus_{other}/{name}", paired_bootstrap(difference, seed))
    prompts = len(own.prompt.unique())
    wins = win_rates(own.scores["reward"].view(prompts, -1), theirs.scores["reward"].view(prompts, -1))
    return result | _interval(f"{prefix}/win_rate_vs_{other}", clustered_mean(wins, own.prompt.unique()))


def _rewards(measured: Measurement) -> Tensor:
    return measured.scores["reward"]


def _costs(measured: Measurement) -> Tensor:
    return measured.scores["cost"]


def _unsafe(measured: Measurement) -> Tensor:
    return (measured.scores["cost"] > 0).double()


def _interval(key: str, estimate: Estimate) -> Metrics:
    return {key: estimate.mean, f"{key}_ci_low": estimate.low, f"{key}_ci_high": estimate.high}
