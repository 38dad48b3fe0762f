"""Evaluates all policies: on their own samples, on refusal prompts and TruthfulQA, and exactly in the closed-form world."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cdpo_lightning import ranks
from cdpo_lightning.config import RunConfig
from cdpo_lightning.console import Screen
from cdpo_lightning.data.corpus import evenly_spaced
from cdpo_lightning.evaluation.categories import category_metrics
from cdpo_lightning.evaluation.comparison import compare
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.evaluation.exact import ExactProblem
from cdpo_lightning.evaluation.metrics import Metrics, policy_metrics, sample_rows, write_jsonl
from cdpo_lightning.evaluation.refusal import is_refusal, refusal_metrics
from cdpo_lightning.evaluation.truthful import truthfulqa_metrics
from cdpo_lightning.pipeline.inference import Inference
from cdpo_lightning.pipeline.prepare import EvaluationSetup
from cdpo_lightning.store.files import atomic_file
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.text.templates import Encoder


@dataclass(frozen=True)
class Candidate:
    """A policy to evaluate, and the names to report its results under."""

    model: nn.Module
    names: tuple[str, ...]
    encoder: Encoder | None = None  # of a policy with another tokenizer than the reference; it has no KL to the reference


def make_candidates(reference: nn.Module, policies: dict[str, nn.Module], has_sft: bool) -> list[Candidate]:
    """Return the reference and every policy, once each; the reference is also named `sft` if it is the model after SFT."""
    names = ("reference", "sft") if has_sft or "sft" in policies else ("reference",)
    others = [Candidate(policy, (who,)) for who, policy in policies.items() if who != "sft"]
    return [Candidate(reference, names), *others]


def evaluate_by_samples(
    config: RunConfig, setup: EvaluationSetup, candidates: Sequence[Candidate], folder: Path, screen: Screen
) -> Metrics:
    """Return `eval/<who>/*` of every candidate on the same prompts, under each of its names; write samples.jsonl."""
    items = evenly_spaced(setup.corpus.prompts, config.evaluation.prompts)
    prompts, count = [item.prompt for item in items], config.evaluation.samples_per_prompt
    seed = stream_seed(config.seed, Stream.EVALUATION_SAMPLES)
    measured: dict[str, Measurement] = {}
    metrics: Metrics = {}
    with screen.stage("evaluate") as done:
        for one in candidates:
            measured |= dict.fromkeys(one.names, setup.evaluator.measure(one.model, prompts, count, seed, one.encoder))
        for who, samples in measured.items():
            metrics |= policy_metrics(who, samples, setup.constraints) | category_metrics(who, samples, items)
        metrics |= compare(measured, stream_seed(config.seed, Stream.BOOTSTRAP))
        rows = [row for who, samples in measured.items() for row in sample_rows(who, samples)]
        done({"prompts": len(items), "responses": len(rows)})
    if ranks.is_first():
        write_jsonl(folder / "samples.jsonl", rows)
    refusals = _refusals(config, setup, candidates, folder, screen)
    return metrics | refusals | _truthfulness(config, setup, candidates, screen)


def _refusals(config: RunConfig, setup: EvaluationSetup, candidates: Sequence[Candidate], folder: Path, screen: Screen) -> Metrics:
    """Return `eval/<who>/refusal/*`; write every response, and whether it is a refusal, to refusals.jsonl."""
    items = evenly_spaced(setup.corpus.refusal_prompts, config.evaluation.prompts)
    if not items:
        return {}
    metrics: Metrics = {}
    rows: list[dict[str, object]] = []
    prompts, count = [item.prompt for item in items], config.evaluation.samples_per_prompt
    seed = stream_seed(config.seed, Stream.EVALUATION_SAMPLES)
    with screen.stage("refusals") as done:
        for one in candidates:
            samples, texts = setup.evaluator.draw(one.model, prompts, count, seed, one.encoder or setup.evaluator.encoder)
            responses, numbers = [text for _, text in texts], [s.prompt for s in samples]
            for name in one.names:
                metrics |= refusal_metrics(name, items, responses, numbers)
                rows += [
                    {"prompt": items[n].prompt, "response": text, "who": name, "label": label, "refused": is_refusal(text)}
                    for n, text in zip(numbers, responses, strict=True)
                    for label in items[n].categories[:1]
                ]
        done({"prompts": len(items)})
    if ranks.is_first():
        write_jsonl(folder / "refusals.jsonl", rows)
    return metrics


def _truthfulness(config: RunConfig, setup: EvaluationSetup, candidates: Sequence[Candidate], screen: Screen) -> Metrics:
    """Return `eval/<who>/truthfulqa/*` of every candidate; empty without TruthfulQA questions."""
    items, inference = evenly_spaced(setup.corpus.questions, config.evaluation.prompts), setup.inference
    metrics: Metrics = {}
    if not items:
        return metrics
    with screen.stage("truthfulqa") as done:
        for one in candidates:
            encoder = one.encoder or setup.evaluator.encoder
            scores = truthfulqa_metrics(one.model, encoder, items, inference.batch_size, inference.precision)
            metrics |= {f"eval/{name}/truthfulqa/{key}": value for name in one.names for key, value in scores.items()}
        done({"questions": len(items)})
    return metrics


def evaluate_exactly(problem: ExactProblem | None, candidates: Sequence[Candidate], inference: Inference, folder: Path) -> Metrics:
    """Return `exact/*` and `truth/*` of every candidate and write frontier.csv; do neither without an exact problem."""
    if problem is None:
        return {}
    metrics: Metrics = {**problem.metrics()}
    for one in candidates:
        raw = problem.policy_logp(one.model, inference.batch_size, inference.precision)
        for who in one.names:
            metrics |= problem.policy_metrics(who, raw)
    if ranks.is_first():
        frontier = problem.frontier()
        with atomic_file(folder / "frontier.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(frontier[0]))
            writer.writeheader()
            writer.writerows(frontier)
    return metrics
