"""Metrics by harm category, because an average over all categories can hide harm in one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cdpo_lightning.data.records import EvaluationPrompt
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.maths.statistics import clustered_mean


def category_metrics(policy: str, measured: Measurement, prompts: Sequence[EvaluationPrompt]) -> Metrics:
    """Return `eval/<policy>/category/<name>/*` for each category of the prompts; a prompt counts in each of its categories."""
    metrics: Metrics = {}
    for name in sorted({name for item in prompts for name in item.categories}):
        in_category = torch.tensor([name in item.categories for item in prompts])[measured.prompt]
        cost = clustered_mean(measured.scores["cost"][in_category], measured.prompt[in_category])
        values = {
            "prompts": cost.clusters,
            "reward_mean": float(measured.scores["reward"][in_category].mean()),
            "cost_mean": cost.mean,
            "cost_ci_low": cost.low,
            "cost_ci_high": cost.high,
            "unsafe_rate": float((measured.scores["cost"][in_category] > 0).double().mean()),
        }
        metrics |= {f"eval/{policy}/category/{name.replace('/', ' or ')}/{key}": value for key, value in values.items()}
    return metrics
