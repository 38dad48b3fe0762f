"""The policies: one code for the dual loop, a fixed lambda and plain DPO."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cdpo_lightning.callbacks.dual_update import DualUpdate
from cdpo_lightning.callbacks.speed import Speed
from cdpo_lightning.config import ConstraintConfig, RunConfig
from cdpo_lightning.console import Screen
from cdpo_lightning.data.pair_data import PairDataModule
from cdpo_lightning.data.pair_table import PairTable, draws
from cdpo_lightning.evaluation import Metrics
from cdpo_lightning.maths.dual import effective_sample_size, one_shot_lambda
from cdpo_lightning.maths.preference import lagrangian_reward
from cdpo_lightning.models.causal_lm import freeze_lower
from cdpo_lightning.modules.policy import PolicyModule
from cdpo_lightning.scoring import Measurement
from cdpo_lightning.stages.prepare import Prepared
from cdpo_lightning.training import Stage, make_logger


def constraint_of(config: RunConfig, who: str) -> ConstraintConfig:
    """The constraint under which `who` is trained: the run's own, or a baseline's."""
    if who == config.who:
        return config.constraint
    if who == "dpo":
        return replace(config.constraint, kind="none")
    return replace(config.constraint, kind="fixed", lambda_init=config.method.cost_only_lambda)


def reference_samples(prepared: Prepared, per_prompt: int) -> Measurement:
    """Samples of the reference for all prompts, for `one_shot` and the anchor."""
    seed = prepared.bench.config.seed * 100_003
    return prepared.judge.measure(prepared.reference, prepared.prompts, per_prompt, seed)


def start_lambda(prepared: Prepared, constraint: ConstraintConfig, screen: Screen) -> float:
    """Lambda before training: 0 without a constraint, a number, or the root on reference samples (`one_shot`)."""
    if constraint.kind == "none":
        return 0.0
    if isinstance(constraint.lambda_init, (int, float)):
        return float(constraint.lambda_init)
    measured = reference_samples(prepared, constraint.one_shot_samples)
    shape = (-1, constraint.one_shot_samples)
    beta = prepared.bench.config.policy.beta
    reward, cost = measured.reward.view(shape), measured.cost.view(shape)
    lam = one_shot_lambda(reward, cost, beta, constraint.c_limit, constraint.lambda_max)
    size = float(effective_sample_size(lagrangian_reward(reward, cost, lam) / beta).mean())
    warning = "" if size >= 0.1 * constraint.one_shot_samples else "; below 10 %: do not trust it, raise one_shot_samples"
    screen.say(f"  one-shot lambda {lam:.3f}, effective samples {size:.1f} of {constraint.one_shot_samples} a prompt{warning}")
    return lam


def anchor_table(prepared: Prepared) -> PairTable | None:
    """Reference responses for the anchor, if it is on."""
    policy = prepared.bench.config.policy
    if policy.anchor == 0:
        return None
    measured = reference_samples(prepared, policy.anchor_responses)
    return PairTable(
        prompts=prepared.table.prompts,
        responses=tuple(s.tokens for s in measured.samples),
        prompt_N=measured.prompt,
        reward_N=measured.reward,
        cost_N=measured.cost,
        reference_logp_N=measured.reference_logp,
        pair_M2=torch.empty(0, 2, dtype=torch.long),
        draw_M=draws(0, 0),
    )


def train_policy(prepared: Prepared, who: str, screen: Screen) -> tuple[nn.Module, Metrics]:
    """The policy `who` and what its training found."""
    bench, config = prepared.bench, prepared.bench.config
    constraint = constraint_of(config, who)
    lam = start_lambda(prepared, constraint, screen)
    data = PairDataModule(prepared.table, config.policy, lam, config.seed, anchor_table(prepared))
    model = freeze_lower(copy.deepcopy(prepared.reference).requires_grad_(True), config.model.trainable_layers)
    module = PolicyModule(model, config.policy)
    folder = bench.folder / "checkpoints" / who
    folder.mkdir(parents=True, exist_ok=True)
    speed = Speed()
    callbacks: list[Any] = [speed]
    if constraint.kind == "dual" or config.policy.refresh:
        callbacks.append(
            DualUpdate(
                constraint,
                config.policy,
                prepared.judge,
                prepared.prompts,
                bench.history,
                who,
                folder,
                config.seed,
                screen.round,
            )
        )
    stage = Stage("policy", config.policy.epochs, folder, config.seed, who, config.policy.gradient_clip)
    logger = make_logger(config.logger, bench.folder, who, baseline=who != config.who)
    with screen.stage(who) as done:
        bench.fit(module, data, stage, callbacks=callbacks, logger=logger)
        done({"lambda": data.dual.lam, "rounds": data.dual.round})
    found = _dual_metrics(data, constraint, lam) | speed.metrics() if who == config.who else {}
    return module.model.to(bench.device).eval(), found


def _dual_metrics(data: PairDataModule, constraint: ConstraintConfig, start: float) -> Metrics:
    """`dual/*`."""
    if constraint.kind == "none":
        return {}
    state = data.dual
    found: Metrics = {"dual/lambda": state.lam, "dual/lambda_start": start}
    if state.round:
        found |= {
            "dual/rounds": state.round,
            "dual/expected_cost": state.expected_cost,
            "dual/expected_cost_se": state.expected_cost_se,
            "dual/alarm": state.alarm,
            "dual/sampled": state.sampled,
            "dual/scored": state.scored,
            "dual/best_feasible_round": state.best_round,
        }
    return found
