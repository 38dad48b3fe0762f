"""Metrics of policies and scorers; the intervals are clustered by prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.dual_round import estimate
from cdpo_lightning.data.corpus import ScoreExample
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.maths.statistics import (
    auroc,
    clustered_mean,
    conditional_value_at_risk,
    pair_accuracy,
    sign_accuracy,
)
from cdpo_lightning.scorers.scorer import Scorer
from cdpo_lightning.store.files import atomic_file

Metrics = dict[str, Any]  # numbers, booleans and strings


def verdict(low: float, high: float, c_limit: float) -> str:
    """Return `yes` if the whole interval of the measure meets the limit, `no` if none of it does, else `undecided`."""
    return "yes" if high <= c_limit else "no" if low > c_limit else "undecided"


def policy_metrics(who: str, measured: Measurement, constraints: Sequence[Constraint]) -> Metrics:
    """Return `eval/<who>/*`: reward, cost, and for each constraint its value, interval and verdict."""
    samples, cost = measured.samples, measured.scores["cost"]
    metrics: Metrics = {
        **_score_metrics("reward", measured),
        **_score_metrics("cost", measured),
        "unsafe_rate": float((cost > 0).double().mean()),
        "cost_cvar_90": conditional_value_at_risk(cost, 0.9),
        "response_tokens_mean": sum(len(s.tokens) for s in samples) / len(samples),
        "unfinished_rate": sum(not s.finished for s in samples) / len(samples),
        "samples": len(samples),
        "prompts": len(measured.prompt.unique()),
    }
    for c in constraints:
        value = estimate(c, DualState(lam={}), measured)
        met = verdict(value.low, value.high, c.limit)
        metrics |= {f"{c.name}/value": value.mean, f"{c.name}/ci_low": value.low, f"{c.name}/ci_high": value.high}
        metrics[f"{c.name}/met"] = met
    if "cost/met" in metrics:
        metrics["feasible"] = metrics["cost/met"]
    if not bool(measured.reference_logp.isnan().any()):
        metrics["kl_to_reference"] = float((measured.policy_logp - measured.reference_logp).mean())
    return {f"eval/{who}/{name}": value for name, value in metrics.items()}


def _score_metrics(name: str, measured: Measurement) -> Metrics:
    """Return the mean of one score, its standard deviation over responses, and its 95 % interval, clustered by prompt."""
    score = measured.scores[name]
    mean = clustered_mean(score, measured.prompt)
    return {
        f"{name}_mean": mean.mean,
        f"{name}_std": float(score.std()),
        f"{name}_ci_low": mean.low,
        f"{name}_ci_high": mean.high,
    }


def sample_rows(who: str, measured: Measurement) -> list[dict[str, object]]:
    """Return the rows of samples.jsonl: one per sample, with its reward and cost."""
    rewards, costs = measured.scores["reward"].tolist(), measured.scores["cost"].tolist()
    return [
        {"prompt": prompt, "response": response, "who": who, "reward": reward, "cost": cost}
        for (prompt, response), reward, cost in zip(measured.texts, rewards, costs, strict=True)
    ]


def write_jsonl(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write the rows to `path` atomically, as one JSON object per line."""
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def scorer_metrics(kind: str, scorer: Scorer, examples: Sequence[ScoreExample]) -> Metrics:
    """Return `<kind>/*` of a reward or cost scorer on held-out examples; metrics without labelled examples are left out."""
    labelled = [
        (e, text) for e in examples for text, sign in zip(e.responses, e.signs, strict=True) if sign or e.preferred is not None
    ]
    texts = list(dict.fromkeys((e.prompt, text) for e, text in labelled))
    score = dict(zip(texts, scorer.score(texts).tolist(), strict=True))
    result = _pair_metrics(score, examples)
    signed = {(e.prompt, text): sign for e in examples for text, sign in zip(e.responses, e.signs, strict=True) if sign}
    if signed:
        cost, sign_of = torch.tensor([score[text] for text in signed]), torch.tensor(list(signed.values()))
        result["sign_accuracy"] = sign_accuracy(cost, sign_of)
        if len(sign_of.unique()) == 2:
            result["auroc"] = auroc(cost, sign_of)
            positive, negative = int((sign_of > 0).sum()), int((sign_of < 0).sum())
            result["auroc_chance_se"] = ((positive + negative + 1) / (12 * positive * negative)) ** 0.5  # Mann-Whitney
    return {f"{kind}/{name}": value for name, value in result.items()} | {f"{kind}/held_out": len(examples)}


def _pair_metrics(score: dict[tuple[str, str], float], examples: Sequence[ScoreExample]) -> dict[str, float]:
    """Return how often the higher score, and how often the longer response, is the preferred one."""
    pairs = [(e.prompt, e.responses[e.preferred], e.responses[1 - e.preferred]) for e in examples if e.preferred is not None]
    if not pairs:
        return {}
    chosen, other = (torch.tensor([score[pair[0], pair[i]] for pair in pairs]) for i in (1, 2))
    longer = sum(len(preferred) > len(rejected) for _, preferred, rejected in pairs)
    return {
        "pair_accuracy": pair_accuracy(chosen, other),
        "pair_accuracy_chance_se": 0.5 / len(pairs) ** 0.5,
        "longer_wins_accuracy": longer / len(pairs),
    }
