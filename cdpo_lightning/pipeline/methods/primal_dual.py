"""PD-DPO, in two stages: DPO on reward preferences gives pi_rhat; then DPO on cost preferences with pi_rhat as reference.

In the second stage the answers of a safety oracle update lambda. With a fixed lambda it is SACPO; with pairs of the policy's own
samples and an exploration bonus it is O-PD-DPO.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from cdpo_lightning.config import PrimalDualConfig, ResolvedMethod
from cdpo_lightning.console import Screen
from cdpo_lightning.constraints.constraint import DualState
from cdpo_lightning.constraints.dual_round import Feedback, Oracle, dual_round, exact_feedback
from cdpo_lightning.data.pairs.objectives import CostPreference, LagrangianPreference, Objective
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.evaluation.exact import ExactProblem
from cdpo_lightning.maths.primal_dual import binary_feedback
from cdpo_lightning.pipeline.compute_budget import ComputeBudget, of_samples
from cdpo_lightning.pipeline.inference import Inference
from cdpo_lightning.pipeline.methods.exploration import Exploration
from cdpo_lightning.pipeline.methods.labels import better_labels, safer_labels, with_labels
from cdpo_lightning.pipeline.methods.preference import PairFit, TrainedPolicy, fit_pairs, make_loop, policy_metrics
from cdpo_lightning.pipeline.methods.starts import start_lambda
from cdpo_lightning.pipeline.prepare import MethodInputs
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.text.packing import TokenRow
from cdpo_lightning.training.dual_loop import measure_round


def feedback_of(config: PrimalDualConfig) -> Feedback:
    """Return the source of the dual update's values: the cost scores, or estimates from the answers of a binary oracle."""
    if config.feedback == "score":
        return exact_feedback

    def query(cost: Tensor, seed: int) -> Tensor:
        return binary_feedback(cost, config.asks, torch.Generator().manual_seed(seed))[0]

    return query


def complete_table(exact: ExactProblem, seed: int) -> PairTable:
    """Return a table of all responses of the closed-form world, with every pair of responses to each prompt."""
    prompts, count = exact.reference_logp.shape
    pairs = torch.combinations(torch.arange(count))
    every = (torch.arange(prompts)[:, None, None] * count + pairs).view(-1, 2)
    return PairTable(
        prompts=tuple(dict.fromkeys(tuple(prompt) for prompt, _ in exact.rows)),
        responses=tuple(tuple(response) for _, responses in exact.rows for response in responses),
        prompt_N=torch.arange(prompts).repeat_interleave(count),
        scores={name: score.flatten() for name, score in exact.scores.items()},
        reference_logp_N=exact.reference_logp.flatten(),
        pair_M2=every,
        draw_M=draws(len(every), stream_seed(seed, Stream.LABEL_DRAWS, 0)),
    )


def table_logp(inference: Inference, model: nn.Module, table: PairTable) -> Tensor:
    """Return log pi of every response of the table under the model, nats, [N]."""
    rows: list[TokenRow] = [(table.prompts[p], [y]) for p, y in zip(table.prompt_N.tolist(), table.responses, strict=True)]
    return inference.logp(model, rows)


def train_primal_dual(inputs: MethodInputs, method: ResolvedMethod, screen: Screen) -> TrainedPolicy:
    """Return the policy of PD-DPO; pi_rhat itself if every multiplier is 0 at the end."""
    lam, start_compute = start_lambda(inputs, method.constraint, method.policy.beta, screen)
    both = _both_stages(inputs, method)
    rhat = fit_pairs(_reward_stage(both, inputs, method), inputs, screen)
    rhat.model.requires_grad_(False)
    table = replace(both.table, reference_logp_N=table_logp(inputs.inference, rhat.model, both.table))
    evaluator = replace(inputs.evaluator, reference=rhat.model)
    feedback = feedback_of(method.primal_dual)
    second = replace(both, table=table, evaluator=evaluator, start=rhat.model, feedback=feedback, dual=DualState(lam=lam))
    objective = CostPreference(method.policy.beta, method.primal_dual.labels, both.loop.constraints)
    second = _with_objective(second, objective, safer_labels(inputs.pairs.records) if method.human else None, inputs, method)
    dual, step_compute = _first_step(second, inputs)
    fitted = fit_pairs(replace(second, dual=dual), inputs, screen)
    labelled = 0 if method.human else len(inputs.evaluator.scorers) * len(table.responses)  # rewards, then costs, once each
    compute = start_compute + step_compute + ComputeBudget(scorer_forwards=labelled) + rhat.compute + fitted.compute
    model = fitted.model if any(value > 0 for value in fitted.dual.lam.values()) else rhat.model
    return TrainedPolicy(model, policy_metrics(fitted, method, both.loop, lam), fitted.speed, compute)


def _both_stages(inputs: MethodInputs, method: ResolvedMethod) -> PairFit:
    """Return the settings that both stages share; each stage then sets its objective, labels and multipliers."""
    own = method.primal_dual
    policy = replace(method.policy, labels=own.labels, refresh=own.refresh, epochs=own.epochs)
    table = inputs.pairs.table
    if own.pairs == "complete":
        assert inputs.exact is not None, "refused by the configuration"
        table = complete_table(inputs.exact, inputs.settings.seed)
        row = len(table) // len(table.prompts)
        policy = replace(policy, pairs_per_row=row, batch_size=row)
    loop = make_loop(method, tuple(inputs.constraints), inputs.settings.seed)
    return PairFit(
        who=method.who,
        folder=inputs.settings.folder / method.who,
        policy=policy,
        loop=loop,
        table=table,
        objective=LagrangianPreference(policy.beta, policy.labels, loop.constraints),
        start=inputs.evaluator.reference,
        evaluator=inputs.evaluator,
        dual=DualState(lam=dict.fromkeys((c.name for c in loop.constraints), 0.0)),
    )


def _reward_stage(both: PairFit, inputs: MethodInputs, method: ResolvedMethod) -> PairFit:
    """Return the settings of the first stage: DPO on reward preferences, with lambda = 0."""
    labels = better_labels(inputs.pairs.records) if method.human else None
    stage = replace(
        both,
        who=f"{method.who}_reward",
        folder=both.folder / "reward",
        loop=replace(both.loop, update=None),
        policy=replace(both.policy, epochs=method.primal_dual.reward_epochs),
    )
    return _with_objective(stage, both.objective, labels, inputs, method)


def _with_objective(
    task: PairFit, objective: Objective, label: Tensor | None, inputs: MethodInputs, method: ResolvedMethod
) -> PairFit:
    """Return the settings with the objective, with annotators' labels if given, and with the exploration bonus if it is on."""
    table, bonus, inference = task.table, method.primal_dual.bonus, inputs.inference
    if label is not None:
        table, objective = with_labels(table, label, objective, task.who)
    explored = Exploration(inputs.evaluator.reference, objective, bonus, inference.batch_size, inference.precision)
    return replace(task, table=table, objective=objective, exploration_bonus=explored if bonus else None)


def _first_step(task: PairFit, inputs: MethodInputs) -> tuple[DualState, ComputeBudget]:
    """Return the multipliers after one dual update on samples of pi_rhat, and its compute.

    Without it a loop that starts at lambda = 0 would ignore the cost until the first round.
    """
    loop = task.loop
    if loop.update is None:
        return task.dual, ComputeBudget()
    measured = measure_round(loop, task.evaluator, task.start, inputs.pairs.prompts, 0)
    oracle = Oracle(task.feedback, stream_seed(loop.seed, Stream.SAFETY_ORACLE, 0))
    after, _ = dual_round(measured, loop.constraints, task.dual, loop.update, loop.beta, oracle=oracle)
    # The second stage counts its rounds from 0, and an integral begins at the lambda that it starts from.
    return DualState(lam=after.lam, measure_memory=after.measure_memory), of_samples([measured])
