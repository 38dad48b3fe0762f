"""PD-DPO in two stages: DPO on reward preferences gives pi_rhat; then DPO on cost preferences against it, lambda being stepped by a
safety oracle's answers. With lambda fixed it is SACPO; on its own samples and with a bonus, O-PD-DPO."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from cdpo_lightning.config import PrimalDualConfig, ResolvedMethod
from cdpo_lightning.console import Screen
from cdpo_lightning.data.batching import choose_prompts
from cdpo_lightning.data.pairs.objectives import CostPreference, LagrangianPreference, Objective
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.maths.primal_dual import binary_feedback
from cdpo_lightning.maths.statistics import clustered_mean, within_cluster_variance
from cdpo_lightning.pipeline.evaluate.policies import exact_problem
from cdpo_lightning.pipeline.methods.compute_budget import ComputeBudget, sampled
from cdpo_lightning.pipeline.methods.exploration import Exploration
from cdpo_lightning.pipeline.methods.labels import better_labels, safer_labels, with_labels
from cdpo_lightning.pipeline.methods.preference import Task, Trained, dual_metrics, fit_pairs, start_lambda
from cdpo_lightning.pipeline.prepare import Prepared
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.text.packing import Row
from cdpo_lightning.training.callbacks.dual_update import Feedback, by_score, next_lambda
from cdpo_lightning.training.data_modules.pair_data import DualState


def feedback_of(config: PrimalDualConfig) -> Feedback:
    """What the dual step is told: the cost scores, or a binary oracle's answers in their place."""
    if config.feedback == "score":
        return by_score

    def ask(cost: Tensor, seed: int) -> Tensor:
        return binary_feedback(cost, config.asks, torch.Generator().manual_seed(seed))[0]

    return ask


def complete_table(prepared: Prepared) -> PairTable:
    """Every pair of all responses of the closed-form world, with its constants."""
    problem = exact_problem(prepared)
    assert problem is not None, "refused by the configuration"
    prompts, count = problem.reward.shape
    pairs = torch.combinations(torch.arange(count))
    every = (torch.arange(prompts)[:, None, None] * count + pairs).view(-1, 2)
    return PairTable(
        prompts=tuple(dict.fromkeys(tuple(prompt) for prompt, _ in problem.rows)),
        responses=tuple(tuple(response) for _, responses in problem.rows for response in responses),
        prompt_N=torch.arange(prompts).repeat_interleave(count),
        reward_N=problem.reward.flatten(),
        cost_N=problem.cost.flatten(),
        reference_logp_N=problem.reference_logp.flatten(),
        pair_M2=every,
        draw_M=draws(len(every), stream_seed(prepared.bench.config.seed, Stream.LABEL_DRAWS, 0)),
    )


def _logp(prepared: Prepared, model: nn.Module, table: PairTable) -> Tensor:
    """log pi of every response of the table, nats: stored, so that pi_rhat is not needed while pi is trained."""
    rows: list[Row] = [(table.prompts[p], [y]) for p, y in zip(table.prompt_N.tolist(), table.responses, strict=True)]
    return prepared.bench.logp(model, rows)


def train_primal_dual(prepared: Prepared, plan: ResolvedMethod, screen: Screen) -> Trained:
    """The policy of PD-DPO; pi_rhat itself if lambda ends at 0."""
    lam, compute = start_lambda(prepared, plan.constraint, screen)
    first = _stage(prepared, plan, prepared.table if plan.primal_dual.pairs == "data" else complete_table(prepared))
    beta, labels = plan.policy.beta, plan.primal_dual.labels
    better = better_labels(prepared.pairs) if plan.human else None
    bonus = plan.primal_dual.bonus
    reward = _with(first, LagrangianPreference(beta, labels), better, prepared, bonus)
    reward = replace(
        reward, who=f"{plan.who}_reward", folder=first.folder / "reward", constraint=replace(plan.constraint, kind="none")
    )
    rhat = fit_pairs(prepared, replace(reward, policy=replace(first.policy, epochs=plan.primal_dual.reward_epochs)), screen)
    rhat.model.requires_grad_(False)
    evaluator = replace(prepared.evaluator, reference=rhat.model)
    table = replace(first.table, reference_logp_N=_logp(prepared, rhat.model, first.table))
    safer = safer_labels(prepared.pairs) if plan.human else None
    second = replace(first, table=table, evaluator=evaluator, start=rhat.model, feedback=feedback_of(plan.primal_dual))
    second = _with(second, CostPreference(beta, labels), safer, prepared, bonus)
    begun, measured = _first_step(second, prepared, lam)
    result = fit_pairs(prepared, replace(second, lam=begun), screen)
    requested = 0 if plan.human else 2 * len(table.responses)  # reward in the first stage, cost in the second
    compute = compute + measured + ComputeBudget(scorer_forwards=requested) + rhat.compute + result.compute
    model = result.model if result.state.lam > 0 else rhat.model
    return Trained(model, dual_metrics(result.state, plan.constraint, lam), result.speed, compute)


def _stage(prepared: Prepared, plan: ResolvedMethod, table: PairTable) -> Task:
    """What both stages share; the objective and the labels are put in for each."""
    policy = replace(plan.policy, labels=plan.primal_dual.labels, refresh=plan.primal_dual.online, epochs=plan.primal_dual.epochs)
    if plan.primal_dual.pairs == "complete":
        row = len(table) // len(table.prompts)
        policy = replace(policy, pairs_per_row=row, batch_size=row)
    return Task(
        who=plan.who,
        folder=prepared.bench.folder / "checkpoints" / plan.who,
        policy=policy,
        constraint=plan.constraint,
        table=table,
        objective=LagrangianPreference(policy.beta, policy.labels),
        start=prepared.reference,
        evaluator=prepared.evaluator,
        lam=0.0,
    )


def _with(task: Task, objective: Objective, label: Tensor | None, prepared: Prepared, bonus: float) -> Task:
    """The task with its objective, people's labels where given, and the exploration bonus where it is on."""
    table = task.table
    if label is not None:
        table, objective = with_labels(table, label, objective, task.who)
    trainer = prepared.bench.config.trainer
    explored = Exploration(prepared.reference, objective, bonus, trainer.inference_batch, trainer.precision)
    return replace(task, table=table, objective=objective, exploration_bonus=explored if bonus else None)


def _first_step(task: Task, prepared: Prepared, lam: float) -> tuple[float, ComputeBudget]:
    """Lambda after a step on samples of pi_rhat, and what these took: a loop begun at 0 would learn nothing of cost at first."""
    constraint = task.constraint
    if constraint.kind != "dual":
        return lam, ComputeBudget()
    seed = prepared.bench.config.seed
    chosen = choose_prompts(len(prepared.prompts), constraint.prompts, stream_seed(seed, Stream.DUAL_PROMPTS, 0))
    prompts = [prepared.prompts[i] for i in chosen.tolist()]
    measured = task.evaluator.measure(task.start, prompts, constraint.samples_per_prompt, stream_seed(seed, Stream.DUAL_SAMPLES, 0))
    cost = clustered_mean(task.feedback(measured.cost, stream_seed(seed, Stream.SAFETY_ORACLE, 0)), measured.prompt)
    variance = within_cluster_variance(measured.cost, measured.prompt)
    return next_lambda(constraint, task.policy.beta, DualState(lam, lam), cost, variance)[0], sampled([measured])
