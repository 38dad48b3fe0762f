"""What every policy is worth: by samples, and in the closed-form world exactly."""

from __future__ import annotations

import csv

import torch
from torch import nn

from cdpo_lightning import ranks
from cdpo_lightning.artifacts import whole_file
from cdpo_lightning.console import Screen
from cdpo_lightning.evaluation import Metrics, policy_metrics, sample_rows, write_jsonl
from cdpo_lightning.exact import ExactProblem, all_rows, all_texts
from cdpo_lightning.stages.prepare import Prepared, constants_from


def judge_all(prepared: Prepared, policies: dict[str, nn.Module], screen: Screen) -> Metrics:
    """Samples and, in the closed-form world, exact values of the reference, SFT and every policy."""
    config = prepared.bench.config
    metrics = _exact_metrics(prepared, policies)
    if "evaluate" not in config.stages:
        return metrics
    prompts = [item.prompt for item in prepared.bench.corpus.prompts]
    prompts = prompts[: config.evaluation.prompts] if config.evaluation.prompts else prompts
    rows: list[dict[str, object]] = []
    with screen.stage("evaluate") as done:
        for policy, names in _judged(prepared, policies):
            measured = prepared.judge.measure(policy, prompts, config.evaluation.samples_per_prompt, config.seed + 7_000_003)
            for name in names:
                metrics |= policy_metrics(name, measured, config.constraint.c_limit)
                rows += sample_rows(name, measured)
        done({"prompts": len(prompts), "responses": len(rows)})
    if ranks.first():
        write_jsonl(prepared.bench.folder / "samples.jsonl", rows)
    return metrics


def _judged(prepared: Prepared, policies: dict[str, nn.Module]) -> list[tuple[nn.Module, list[str]]]:
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
    reward, cost, logp = constants_from(bench, prepared.judge, prepared.reference_identity)(texts, rows)
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
    for policy, names in _judged(prepared, policies):
        for who in names:
            metrics |= problem.judge(who, policy, trainer.inference_batch, trainer.precision)
    if ranks.first():
        _write_frontier(prepared, problem)
    return metrics


def _write_frontier(prepared: Prepared, problem: ExactProblem) -> None:
    """frontier.csv."""
    frontier = problem.frontier()
    with whole_file(prepared.bench.folder / "frontier.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(frontier[0]))
        writer.writeheader()
        writer.writerows(frontier)
