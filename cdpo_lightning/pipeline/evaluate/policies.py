"""What every policy is worth: by samples, and in the closed-form world exactly."""

from __future__ import annotations

import csv
from dataclasses import dataclass

import torch
from torch import nn

from cdpo_lightning import ranks
from cdpo_lightning.console import Screen
from cdpo_lightning.data.corpus import spread
from cdpo_lightning.evaluation.categories import category_metrics
from cdpo_lightning.evaluation.comparison import compare
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.evaluation.exact import ExactProblem, all_rows, all_texts
from cdpo_lightning.evaluation.metrics import Metrics, policy_metrics, sample_rows, write_jsonl
from cdpo_lightning.evaluation.refusal import is_refusal, refusal_metrics
from cdpo_lightning.evaluation.truthful import truthfulqa_metrics
from cdpo_lightning.pipeline.prepare import EvaluationSetup, Prepared, constants_from
from cdpo_lightning.store.files import whole_file
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.text.templates import Encoder


@dataclass(frozen=True)
class Candidate:
    """A policy and the names it goes by; one that reads other tokens than the reference brings its encoder, and has no KL to it."""

    model: nn.Module
    names: tuple[str, ...]
    encoder: Encoder | None = None


def evaluate_all(prepared: Prepared, policies: dict[str, nn.Module], screen: Screen) -> Metrics:
    """Samples and, in the closed-form world, exact values of the reference, SFT and every policy."""
    metrics = _exact_metrics(prepared, policies)
    if "evaluate" not in prepared.bench.config.stages:
        return metrics
    candidates = [Candidate(policy, tuple(names)) for policy, names in _candidates(prepared, policies)]
    return metrics | evaluate_by_samples(prepared, candidates, screen)


def evaluate_by_samples(setup: EvaluationSetup, candidates: list[Candidate], screen: Screen) -> Metrics:
    """`eval/<who>/*` of every candidate on the same prompts, under each of its names."""
    bench, config = setup.bench, setup.bench.config
    items = spread(bench.corpus.prompts, config.evaluation.prompts)
    everyone: dict[str, Measurement] = {}
    seed = stream_seed(config.seed, Stream.EVALUATION_SAMPLES)
    metrics: Metrics = {}
    with screen.stage("evaluate") as done:
        for one in candidates:
            requested = [item.prompt for item in items]
            measured = setup.evaluator.measure(one.model, requested, config.evaluation.samples_per_prompt, seed, one.encoder)
            everyone |= dict.fromkeys(one.names, measured)
        for who, measured in everyone.items():
            metrics |= policy_metrics(who, measured, config.constraint.c_limit) | category_metrics(who, measured, items)
        metrics |= compare(everyone, stream_seed(config.seed, Stream.BOOTSTRAP))
        rows = [row for who, measured in everyone.items() for row in sample_rows(who, measured)]
        done({"prompts": len(items), "responses": len(rows)})
    if ranks.is_first():
        write_jsonl(bench.folder / "samples.jsonl", rows)
    return metrics | _refusals(setup, candidates, screen) | _truthfulness(setup, candidates, screen)


def _refusals(setup: EvaluationSetup, candidates: list[Candidate], screen: Screen) -> Metrics:
    """`eval/<who>/refusal/*`, and every response with what the detector said of it in refusals.jsonl."""
    config, metrics, rows = setup.bench.config, {}, []  # type: ignore[var-annotated]
    items = spread(setup.bench.corpus.refusal_prompts, config.evaluation.prompts)
    seed = stream_seed(config.seed, Stream.EVALUATION_SAMPLES)
    if not items:
        return {}
    with screen.stage("refusals") as done:
        for one in candidates:
            requested, count = [item.prompt for item in items], config.evaluation.samples_per_prompt
            samples, texts = setup.evaluator.draw(one.model, requested, count, seed, one.encoder or setup.evaluator.encoder)
            for name in one.names:
                metrics |= refusal_metrics(name, items, [text for _, text in texts], [s.prompt for s in samples])
                rows += [
                    {
                        "prompt": p,
                        "response": text,
                        "who": name,
                        "label": items[s.prompt].categories[0],
                        "refused": is_refusal(text),
                    }
                    for s, (p, text) in zip(samples, texts, strict=True)
                ]
        done({"prompts": len(items)})
    if ranks.is_first():
        write_jsonl(setup.bench.folder / "refusals.jsonl", rows)
    return metrics


def _truthfulness(setup: EvaluationSetup, candidates: list[Candidate], screen: Screen) -> Metrics:
    """`eval/<who>/truthfulqa/*`."""
    config, metrics = setup.bench.config, {}  # type: ignore[var-annotated]
    items, trainer = spread(setup.bench.corpus.questions, config.evaluation.prompts), config.trainer
    if not items:
        return {}
    with screen.stage("truthfulqa") as done:
        for one in candidates:
            encoder = one.encoder or setup.evaluator.encoder
            result = truthfulqa_metrics(one.model, encoder, items, trainer.inference_batch, trainer.precision)
            metrics |= {f"eval/{name}/truthfulqa/{key}": value for name in one.names for key, value in result.items()}
        done({"questions": len(items)})
    return metrics


def _candidates(prepared: Prepared, policies: dict[str, nn.Module]) -> list[tuple[nn.Module, list[str]]]:
    """Every policy once with the names it goes by: SFT is the reference."""
    fine_tuned = ["sft"] if "sft" in prepared.bench.config.stages or "sft" in policies else []
    others = [(policy, [who]) for who, policy in policies.items() if who != "sft"]
    return [(prepared.reference, ["reference", *fine_tuned]), *others]


def exact_problem(prepared: Prepared) -> ExactProblem | None:
    """The enumerated problem, in the closed-form world."""
    bench, world = prepared.bench, prepared.bench.corpus.world
    if world is None:
        return None
    prompts = [bench.encoder.prompt(p) for p in world.prompts]
    rows = all_rows(prompts, [bench.encoder.response(r) for r in world.responses])
    texts = all_texts(world)
    shape = (len(world.prompts), len(world.responses))
    reward, cost, logp = constants_from(bench, prepared.evaluator, prepared.reference_identity)(texts, rows)
    truth = torch.tensor([world.truth(*text) for text in texts], dtype=torch.float64)
    config = bench.config
    return ExactProblem(
        reference_logp=logp.view(shape),
        reward=reward.view(shape),
        cost=cost.view(shape),
        true_reward=truth[:, 0].view(shape),
        true_cost=truth[:, 1].view(shape),
        beta=config.policy.beta,
        c_limit=config.constraint.c_limit,
        rows=rows,
    )


def _exact_metrics(prepared: Prepared, policies: dict[str, nn.Module]) -> Metrics:
    problem = exact_problem(prepared)
    if problem is None:
        return {}
    trainer = prepared.bench.config.trainer
    metrics: Metrics = {**problem.metrics()}
    for policy, names in _candidates(prepared, policies):
        for who in names:
            metrics |= problem.evaluator(who, policy, trainer.inference_batch, trainer.precision)
    if ranks.is_first():
        _write_frontier(prepared, problem)
    return metrics


def _write_frontier(prepared: Prepared, problem: ExactProblem) -> None:
    """frontier.csv."""
    frontier = problem.frontier()
    with whole_file(prepared.bench.folder / "frontier.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(frontier[0]))
        writer.writeheader()
        writer.writerows(frontier)
