"""Trains PPO-Lagrangian (Safe RLHF) with the run's scorers and prompts."""

from __future__ import annotations

import copy

from cdpo_lightning.config import ResolvedMethod
from cdpo_lightning.console import Screen
from cdpo_lightning.constraints.constraint import REWARD, DualState
from cdpo_lightning.constraints.dual_round import dual_metrics
from cdpo_lightning.constraints.updates import make_update
from cdpo_lightning.models.heads.value_model import ValueModel
from cdpo_lightning.models.lm.causal_lm import freeze_lower_layers
from cdpo_lightning.pipeline.compute_budget import of_training, round_networks
from cdpo_lightning.pipeline.methods.preference import TrainedPolicy, shown_multipliers
from cdpo_lightning.pipeline.methods.starts import start_lambda
from cdpo_lightning.pipeline.prepare import MethodInputs
from cdpo_lightning.pipeline.sft import sft_rows
from cdpo_lightning.training.callbacks.compute_meter import ComputeMeter
from cdpo_lightning.training.callbacks.rollout_round import RolloutRound
from cdpo_lightning.training.callbacks.round_log import RoundLog
from cdpo_lightning.training.data_modules.rollouts import Rollouts
from cdpo_lightning.training.dual_loop import DualLoop
from cdpo_lightning.training.fit import FitStage, fit
from cdpo_lightning.training.modules.ppo import PPOModule


def train_ppo(inputs: MethodInputs, method: ResolvedMethod, screen: Screen) -> TrainedPolicy:
    """Return the policy of PPO-Lagrangian: the actor after the last round."""
    lam, start_compute = start_lambda(inputs, method.constraint, method.policy.beta, screen)
    layers, reference = inputs.trainables.model.trainable_layers, inputs.evaluator.reference
    actor = freeze_lower_layers(copy.deepcopy(reference).requires_grad_(True), layers)
    critics = {name: ValueModel(reference) for name in (REWARD, *(c.name for c in inputs.constraints))}
    for critic in critics.values():
        freeze_lower_layers(critic.backbone, layers)
    module = PPOModule(actor, critics, method.ppo)
    rows = sft_rows(inputs.evaluator.encoder, inputs.demonstrations) if method.ppo.ptx else []
    data = Rollouts(module, inputs.evaluator, inputs.pairs.prompts, _loop(inputs, method), DualState(lam=lam), rows)
    folder = inputs.settings.folder / method.who
    folder.mkdir(parents=True, exist_ok=True)
    meter = ComputeMeter()
    log = RolloutRound(RoundLog(inputs.settings.history, method.who, screen.round))
    stage = FitStage("policy", method.ppo.rounds, folder, method.who, method.policy.gradient_clip)
    with screen.stage(method.who) as done:
        fit(module, data, stage, inputs.settings, [log, meter])
        done({**shown_multipliers(data.dual), "rounds": data.dual.round})
    networks = 1 + len(critics) + round_networks(inputs.evaluator)
    compute = start_compute + of_training(meter, data.counts, len(inputs.evaluator.scorers), networks)
    counts = {"dual/sampled": data.counts.samples, "dual/scored": data.counts.scored, "dual/best_feasible_round": 0}
    dual = dual_metrics(inputs.constraints, data.dual, lam) | counts
    return TrainedPolicy(inputs.inference.keep(module.model), dual, {}, compute)


def _loop(inputs: MethodInputs, method: ResolvedMethod) -> DualLoop:
    return DualLoop(
        constraints=inputs.constraints,
        update=make_update(method.constraint),
        beta=method.policy.beta,
        every_k_epochs=1,
        prompts=method.constraint.prompts,
        samples_per_prompt=method.ppo.samples_per_prompt,
        seed=inputs.settings.seed,
    )
