"""The methods that fit a policy to preference pairs in one stage: C-DPO with its dual loop or a fixed lambda, DPO, SafeDPO.

`fit_pairs` also trains each of the two stages of PD-DPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cdpo_lightning.config import PolicyConfig, ResolvedMethod
from cdpo_lightning.console import Screen
from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.dual_round import Feedback, dual_metrics, exact_feedback
from cdpo_lightning.constraints.updates import make_update
from cdpo_lightning.data.pairs.objectives import LagrangianPreference, Objective
from cdpo_lightning.data.pairs.pair_table import PairTable
from cdpo_lightning.evaluation.evaluator import PolicyEvaluator, SampleCounts
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.pipeline.compute_budget import ComputeBudget, of_training, round_networks
from cdpo_lightning.pipeline.methods.labels import select_pairs
from cdpo_lightning.pipeline.methods.starts import anchor_table, start_lambda
from cdpo_lightning.pipeline.prepare import MethodInputs
from cdpo_lightning.training.callbacks.compute_meter import ComputeMeter
from cdpo_lightning.training.callbacks.dual_update import DualUpdate
from cdpo_lightning.training.callbacks.round_log import RoundLog
from cdpo_lightning.training.callbacks.speed import Speed
from cdpo_lightning.training.data_modules.pair_data import BestRound, ExplorationBonus, PairDataModule
from cdpo_lightning.training.dual_loop import DualLoop
from cdpo_lightning.training.fit import FitStage, fit
from cdpo_lightning.training.modules.policy import PolicyModule


@dataclass(frozen=True)
class TrainedPolicy:
    """A trained policy with the metrics of its training."""

    model: nn.Module
    dual: Metrics  # `dual/*` of the last round
    speed: Metrics  # `speed/*`
    compute: ComputeBudget


@dataclass(frozen=True)
class PairFit:
    """The settings of one fit of a policy to pairs."""

    who: str  # the policy's name in the history
    folder: Path  # of its checkpoints
    policy: PolicyConfig
    loop: DualLoop
    table: PairTable
    objective: Objective
    start: nn.Module  # the policy before the first step; also the reference of the table's log-probabilities
    evaluator: PolicyEvaluator
    dual: DualState
    anchor: PairTable | None = None
    feedback: Feedback = exact_feedback
    exploration_bonus: ExplorationBonus | None = None


@dataclass(frozen=True)
class FittedPolicy:
    """The policy of `fit_pairs` with the state of its dual loop and the metrics of its training."""

    model: nn.Module
    dual: DualState
    counts: SampleCounts
    best: BestRound
    speed: Metrics
    compute: ComputeBudget


def make_loop(method: ResolvedMethod, constraints: tuple[Constraint, ...], seed: int) -> DualLoop:
    """Return the dual loop of a method that fits pairs."""
    c = method.constraint
    return DualLoop(
        constraints=constraints,
        update=make_update(c),
        beta=method.policy.beta,
        every_k_epochs=c.every_k_epochs,
        prompts=c.prompts,
        samples_per_prompt=c.samples_per_prompt,
        seed=seed,
    )


def fit_pairs(task: PairFit, inputs: MethodInputs, screen: Screen) -> FittedPolicy:
    """Fit a policy to pairs; return it after the last epoch, with the state of the dual loop."""
    policy = task.policy
    data = PairDataModule(task.table, policy, task.objective, task.dual, inputs.settings.seed, task.anchor, task.exploration_bonus)
    module = PolicyModule(inputs.trainables.copy_of(task.start), policy)
    sizes = {"model/parameters": _count(module.model, False), "model/trainable_parameters": _count(module.model, True)}
    task.folder.mkdir(parents=True, exist_ok=True)
    speed, meter = Speed(), ComputeMeter()
    rounds: list[Any] = []
    if task.loop.update is not None or policy.refresh:
        log = RoundLog(inputs.settings.history, task.who, screen.round)
        rounds = [DualUpdate(task.loop, task.evaluator, inputs.pairs.prompts, log, task.folder, policy.refresh, task.feedback)]
    stage = FitStage("policy", policy.epochs, task.folder, task.who, policy.gradient_clip)
    with screen.stage(task.who) as done:
        fit(module, data, stage, inputs.settings, [*rounds, speed, meter])
        part = sizes["model/trainable_parameters"]
        adapted = {} if part == sizes["model/parameters"] else {"trained parameters": part}
        done({**shown_multipliers(data.dual), "rounds": data.dual.round, **adapted})
    networks = 1 + (round_networks(task.evaluator) if rounds else 0)
    compute = of_training(meter, data.counts, len(task.evaluator.scorers), networks)
    model = inputs.inference.keep(module.model)
    return FittedPolicy(model, data.dual, data.counts, data.best, sizes | speed.metrics(), compute)


def train_preference(inputs: MethodInputs, method: ResolvedMethod, screen: Screen) -> TrainedPolicy:
    """Return the policy of C-DPO, or of a method that differs from C-DPO only in its labels and its lambda."""
    lam, start_compute = start_lambda(inputs, method.constraint, method.policy.beta, screen)
    anchor, anchor_compute = anchor_table(inputs, method.policy)
    loop = make_loop(method, tuple(inputs.constraints), inputs.settings.seed)
    objective = LagrangianPreference(method.policy.beta, method.policy.labels, loop.constraints)
    table, labelled = select_pairs(inputs.pairs, method, objective)
    task = PairFit(
        who=method.who,
        folder=inputs.settings.folder / method.who,
        policy=method.policy,
        loop=loop,
        table=table,
        objective=labelled,
        start=inputs.evaluator.reference,
        evaluator=inputs.evaluator,
        dual=DualState(lam=lam),
        anchor=anchor,
    )
    fitted = fit_pairs(task, inputs, screen)
    compute = start_compute + anchor_compute + _label_compute(inputs, method, len(table.responses)) + fitted.compute
    return TrainedPolicy(fitted.model, policy_metrics(fitted, method, loop, lam), fitted.speed, compute)


def _label_compute(inputs: MethodInputs, method: ResolvedMethod, responses: int) -> ComputeBudget:
    """Return the compute of the labels: the forward passes of the scorers that they depend on."""
    scorers = 0 if method.human else 1 if method.constraint.kind == "none" else len(inputs.evaluator.scorers)
    return ComputeBudget(scorer_forwards=scorers * responses)


def shown_multipliers(dual: DualState) -> dict[str, float]:
    """Return the multipliers as the screen shows them: `lambda` if there is one, else `lambda <constraint>` each."""
    return {"lambda" if len(dual.lam) == 1 else f"lambda {name}": lam for name, lam in dual.lam.items()}


def policy_metrics(fitted: FittedPolicy, method: ResolvedMethod, loop: DualLoop, start: dict[str, float]) -> Metrics:
    """Return `dual/*` of a policy: multipliers, last round, and the counts over all rounds; empty without a constraint."""
    if method.constraint.kind == "none":
        return {}
    metrics: Metrics = dual_metrics(loop.constraints, fitted.dual, start)
    if fitted.dual.round:
        metrics |= {
            "dual/sampled": fitted.counts.samples,
            "dual/scored": fitted.counts.scored,
            "dual/best_feasible_round": fitted.best.number,
        }
    return metrics


def _count(model: nn.Module, trained: bool) -> int:
    """Return the number of parameters of the model, all or those that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)
