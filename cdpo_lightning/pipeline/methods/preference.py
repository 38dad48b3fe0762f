"""The methods that fit preferences of pairs: C-DPO with its dual loop, a fixed lambda, plain DPO, SafeDPO; and `fit_pairs`, which
the two stages of PD-DPO share with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdpo_lightning.config import ConstraintConfig, PolicyConfig, ResolvedMethod
from cdpo_lightning.console import Screen
from cdpo_lightning.data.pairs.objectives import LagrangianPreference, Objective
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.evaluation.evaluator import Measurement, PolicyEvaluator
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.maths.dual import effective_sample_size, one_shot_lambda
from cdpo_lightning.maths.preference import lagrangian_reward
from cdpo_lightning.pipeline.evaluate.policies import exact_problem
from cdpo_lightning.pipeline.methods.compute_budget import SCORERS, ComputeBudget, networks_of, sampled, trained
from cdpo_lightning.pipeline.methods.labels import learnt_from
from cdpo_lightning.pipeline.prepare import Prepared
from cdpo_lightning.pipeline.setup import trainable
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.training.callbacks.compute_meter import ComputeMeter
from cdpo_lightning.training.callbacks.dual_update import DualUpdate, Feedback, by_score
from cdpo_lightning.training.callbacks.speed import Speed
from cdpo_lightning.training.data_modules.pair_data import DualState, ExplorationBonus, PairDataModule
from cdpo_lightning.training.fit import Stage, make_logger
from cdpo_lightning.training.modules.policy import PolicyModule


@dataclass(frozen=True)
class Trained:
    """A policy, what its training found (`dual/*`, of the last round), how fast it was, and what it spent."""

    model: nn.Module
    dual: Metrics
    speed: Metrics
    compute: ComputeBudget


@dataclass(frozen=True)
class Task:
    """One fit of a policy to pairs."""

    who: str  # in the history
    folder: Path
    policy: PolicyConfig
    constraint: ConstraintConfig
    table: PairTable
    objective: Objective
    start: nn.Module  # the policy before the first step, and the table's reference
    evaluator: PolicyEvaluator
    lam: float
    anchor: PairTable | None = None
    feedback: Feedback = by_score
    exploration_bonus: ExplorationBonus | None = None


@dataclass(frozen=True)
class Fitted:
    """What `fit_pairs` leaves behind."""

    model: nn.Module
    state: DualState
    speed: Metrics
    compute: ComputeBudget


def fit_pairs(prepared: Prepared, task: Task, screen: Screen) -> Fitted:
    """The policy after the last epoch, lambda and all that the dual loop remembers."""
    bench, config, policy = prepared.bench, prepared.bench.config, task.policy
    data = PairDataModule(task.table, policy, task.lam, config.seed, task.anchor, task.objective, task.exploration_bonus)
    model = trainable(bench, task.start)
    sizes = {"model/parameters": _count(model, False), "model/trainable_parameters": _count(model, True)}
    module = PolicyModule(model, policy)
    task.folder.mkdir(parents=True, exist_ok=True)
    speed, budget = Speed(), ComputeMeter()
    callbacks: list[Any] = []
    if task.constraint.kind == "dual" or policy.refresh:
        say, history = screen.round, bench.history
        common = (task.constraint, policy, task.evaluator, prepared.prompts, history, task.who, task.folder, config.seed)
        callbacks.append(DualUpdate(*common, say, task.feedback))
    stage = Stage("policy", policy.epochs, task.folder, config.seed, task.who, policy.gradient_clip)
    with screen.stage(task.who) as done:
        logger = make_logger(config.logger, bench.folder, task.who, baseline=task.who != config.who)
        bench.fit(module, data, stage, callbacks=[*callbacks, speed, budget], logger=logger)
        part = sizes["model/trainable_parameters"]
        adapted = {} if part == sizes["model/parameters"] else {"trained parameters": part}
        done({"lambda": data.dual.lam, "rounds": data.dual.round, **adapted})
    compute = trained(budget, data.dual, 1 + (networks_of(task.evaluator) if callbacks else 0))
    return Fitted(bench.offload(module.model), data.dual, sizes | speed.metrics(), compute)


def _count(model: nn.Module, trained: bool) -> int:
    """Parameters of the model, all or those that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def train_preference(prepared: Prepared, plan: ResolvedMethod, screen: Screen) -> Trained:
    """The policy of C-DPO, or of one of those that differ from it in labels and lambda alone."""
    lam, compute = start_lambda(prepared, plan.constraint, screen)
    anchor, drawn = anchor_table(prepared, plan.policy)
    objective = LagrangianPreference(plan.policy.beta, plan.policy.labels)
    table, objective = learnt_from(prepared, plan, objective)  # type: ignore[assignment]
    folder = prepared.bench.folder / "checkpoints" / plan.who
    task = Task(
        who=plan.who,
        folder=folder,
        policy=plan.policy,
        constraint=plan.constraint,
        table=table,
        objective=objective,
        start=prepared.reference,
        evaluator=prepared.evaluator,
        lam=lam,
        anchor=anchor,
    )
    result = fit_pairs(prepared, task, screen)
    requested = 0 if plan.human else 1 if plan.constraint.kind == "none" else SCORERS
    labels = ComputeBudget(scorer_forwards=requested * len(table.responses))
    return Trained(
        result.model, dual_metrics(result.state, plan.constraint, lam), result.speed, compute + drawn + labels + result.compute
    )


def reference_samples(prepared: Prepared, per_prompt: int) -> Measurement:
    """Samples of the reference for all prompts, for `one_shot` and the anchor."""
    seed = stream_seed(prepared.bench.config.seed, Stream.DUAL_SAMPLES, 0)
    return prepared.evaluator.measure(prepared.reference, prepared.prompts, per_prompt, seed)


def start_lambda(prepared: Prepared, constraint: ConstraintConfig, screen: Screen) -> tuple[float, ComputeBudget]:
    """Lambda before training and what finding it took: 0 without a constraint, a number, the root on samples of the reference
    (`one_shot`), or the exact one of the closed-form world.

    Raises:
        ConfigError: `exact`, and no lambda meets the limit.
    """
    if constraint.kind == "none":
        return 0.0, ComputeBudget()
    if constraint.lambda_init == "exact":
        return _exact_lambda(prepared, constraint), ComputeBudget()
    if not isinstance(constraint.lambda_init, str):
        return float(constraint.lambda_init), ComputeBudget()
    measured = reference_samples(prepared, constraint.one_shot_samples)
    shape = (-1, constraint.one_shot_samples)
    beta = prepared.bench.config.policy.beta
    reward, cost = measured.reward.view(shape), measured.cost.view(shape)
    lam = one_shot_lambda(reward, cost, beta, constraint.c_limit, constraint.lambda_max)
    size = float(effective_sample_size(lagrangian_reward(reward, cost, lam) / beta).mean())
    warning = "" if size >= 0.1 * constraint.one_shot_samples else "; below 10 %: do not trust it, raise one_shot_samples"
    screen.say(f"  one-shot lambda {lam:.3f}, effective samples {size:.1f} of {constraint.one_shot_samples} a prompt{warning}")
    return lam, sampled([measured])


def _exact_lambda(prepared: Prepared, constraint: ConstraintConfig) -> float:
    problem = exact_problem(prepared)
    lam = problem.solve() if problem is not None else math.inf
    if math.isinf(lam):
        raise ConfigError(
            f"constraint.c_limit={constraint.c_limit}: no policy meets it, so there is no exact lambda; give a number"
        )
    return lam


def anchor_table(prepared: Prepared, policy: PolicyConfig) -> tuple[PairTable | None, ComputeBudget]:
    """Reference responses for the anchor, if it is on, and what drawing them took."""
    if policy.anchor == 0:
        return None, ComputeBudget()
    measured = reference_samples(prepared, policy.anchor_responses)
    table = PairTable(
        prompts=prepared.table.prompts,
        responses=tuple(s.tokens for s in measured.samples),
        prompt_N=measured.prompt,
        reward_N=measured.reward,
        cost_N=measured.cost,
        reference_logp_N=measured.reference_logp,
        pair_M2=torch.empty(0, 2, dtype=torch.long),
        draw_M=draws(0, 0),
    )
    return table, sampled([measured])


def dual_metrics(state: DualState, constraint: ConstraintConfig, start: float) -> Metrics:
    """`dual/*`."""
    if constraint.kind == "none":
        return {}
    result: Metrics = {"dual/lambda": state.lam, "dual/lambda_start": start}
    if state.round:
        result |= {
            "dual/rounds": state.round,
            "dual/expected_cost": state.expected_cost,
            "dual/expected_cost_se": state.expected_cost_se,
            "dual/alarm": state.alarm,
            "dual/sampled": state.sampled,
            "dual/scored": state.scored,
            "dual/best_feasible_round": state.best_round,
        }
    return result
