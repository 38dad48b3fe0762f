"""PPO-Lagrangian (Safe RLHF) on the run's scorers and prompts."""

from __future__ import annotations

import copy

from cdpo_lightning.config import ResolvedMethod
from cdpo_lightning.console import Screen
from cdpo_lightning.models.heads.value_model import ValueModel
from cdpo_lightning.models.lm.causal_lm import freeze_lower
from cdpo_lightning.pipeline.methods.compute_budget import networks_of, trained
from cdpo_lightning.pipeline.methods.preference import Trained, dual_metrics
from cdpo_lightning.pipeline.prepare import Prepared
from cdpo_lightning.pipeline.sft import sft_rows
from cdpo_lightning.training.callbacks.compute_meter import ComputeMeter
from cdpo_lightning.training.callbacks.rollout_log import RolloutLog
from cdpo_lightning.training.data_modules.rollouts import Rollouts
from cdpo_lightning.training.fit import Stage, make_logger
from cdpo_lightning.training.modules.ppo import PPOModule


def train_ppo(prepared: Prepared, plan: ResolvedMethod, screen: Screen) -> Trained:
    """The actor after the last round."""
    bench, config = prepared.bench, prepared.bench.config
    actor = freeze_lower(copy.deepcopy(prepared.reference).requires_grad_(True), config.model.trainable_layers)
    critics = ValueModel(prepared.reference), ValueModel(prepared.reference)
    for critic in critics:
        freeze_lower(critic.backbone, config.model.trainable_layers)
    module = PPOModule(actor, *critics, plan.ppo)
    rows = sft_rows(bench, bench.corpus.demonstrations.train) if plan.ppo.ptx else []
    evaluator, constraint = prepared.evaluator, plan.constraint
    data = Rollouts(module, evaluator, prepared.prompts, constraint, plan.policy.beta, config.seed, rows)
    folder = bench.folder / "checkpoints" / plan.who
    folder.mkdir(parents=True, exist_ok=True)
    budget = ComputeMeter()
    log = RolloutLog(bench.history, plan.who, constraint.c_limit, screen.round)
    stage = Stage("policy", plan.ppo.rounds, folder, config.seed, plan.who, plan.policy.gradient_clip)
    with screen.stage(plan.who) as done:
        logger = make_logger(config.logger, bench.folder, plan.who, baseline=plan.who != config.who)
        bench.fit(module, data, stage, callbacks=[log, budget], logger=logger)
        done({"lambda": data.dual.lam, "rounds": data.dual.round})
    compute = trained(budget, data.dual, 1 + len(critics) + networks_of(evaluator))
    return Trained(bench.offload(module.model), dual_metrics(data.dual, constraint, plan.ppo.lambda_init), {}, compute)
