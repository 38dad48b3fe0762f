"""The dual loop: every K epochs measure E[c] on the policy's own samples, step lambda, relabel, refresh the pairs.

    trainer = Trainer(callbacks=[DualUpdate(constraint, policy, judge, prompts, history, "cdpo", folder, seed)])

The callback remembers nothing: lambda and all state of the loop are the data module's, which derives the labels of the next epoch
from them and puts them into the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor

from cdpo_lightning import ranks
from cdpo_lightning.config import ConstraintConfig, PolicyConfig
from cdpo_lightning.data.batching import choose_prompts
from cdpo_lightning.data.pairs.pair_table import PairTable, draws, label_flips
from cdpo_lightning.evaluation.evaluator import Measurement, PolicyEvaluator
from cdpo_lightning.maths import dual
from cdpo_lightning.maths.statistics import Estimate, clustered_mean, within_cluster_variance
from cdpo_lightning.models.adapters.lora import learned
from cdpo_lightning.store.files import whole_file
from cdpo_lightning.store.history import History
from cdpo_lightning.streams import Stream, generator, stream_seed
from cdpo_lightning.training.data_modules.pair_data import DualState, PairDataModule
from cdpo_lightning.training.strategies import host_copies, whole_model

Row = dict[str, Any]
Feedback = Callable[[Tensor, int], Tensor]  # what the dual step is told of the costs [N] of a round's samples; a seed


def by_score(cost: Tensor, seed: int) -> Tensor:
    """The scores themselves."""
    return cost


def next_lambda(c: ConstraintConfig, beta: float, state: DualState, cost: Estimate, variance: float) -> tuple[float, float]:
    """(lambda, integral) of the next round by the update that the configuration names; unchanged without a loop."""
    lam, expected = state.lam, cost.mean
    if c.kind != "dual":
        return lam, state.integral
    if c.update == "newton":
        step = dual.newton_step(lam, expected, c.c_limit, beta, variance, c.damping, c.max_step, c.lambda_max)
    elif c.update == "projected":
        step = dual.projected_step(lam, expected, c.c_limit, c.lambda_lr, c.lambda_max)
    elif c.update == "log":
        step = dual.log_step(lam, expected, c.c_limit, c.lambda_lr, 1e-4, c.lambda_max)
    else:
        proportional = c.lambda_lr * c.proportional
        return dual.pi_step(lam, state.integral, expected, c.c_limit, c.lambda_lr, proportional, c.lambda_max)
    return step, state.integral


def on_policy_pairs(measured: Measurement, base: PairTable, chosen: Tensor, per_prompt: int, seed: int, number: int) -> PairTable:
    """The samples of each chosen prompt paired up at random, equal ones left out, with the constants measured anyway.

    The run's `seed` and the `number` of the round decide the pairs and their draws.
    """
    pairing = generator(seed, Stream.DUAL_PAIRING, number)
    keys = [(s.prompt, s.tokens) for s in measured.samples]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # the first sample of every kind
    kept = sorted(first.values())
    location = {keys[i]: n for n, i in enumerate(kept)}
    unique = torch.tensor([location[key] for key in keys])
    drawn = []
    for prompt in range(len(chosen)):
        own = (measured.prompt == prompt).nonzero()[:, 0]
        drawn.append(unique[own[torch.randint(len(own), (per_prompt, 2), generator=pairing)]])
    pairs = torch.cat(drawn)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return PairTable(
        prompts=base.prompts,
        responses=tuple(measured.samples[i].tokens for i in kept),
        prompt_N=chosen[measured.prompt[kept]],
        reward_N=measured.reward[kept],
        cost_N=measured.cost[kept],
        reference_logp_N=measured.reference_logp[kept],
        pair_M2=pairs,
        draw_M=draws(len(pairs), stream_seed(seed, Stream.LABEL_DRAWS, number)),
    )


def effective_share(measured: Measurement, utility: Tensor, beta: float) -> float:
    """Effective sample size of the samples as draws from reference * exp(utility / beta), over their number: 1 when the policy is
    that optimum."""
    weight = measured.reference_logp + utility / beta - measured.policy_logp
    per_prompt = weight.view(int(measured.prompt.max()) + 1, -1)
    return float(dual.effective_sample_size(per_prompt).mean()) / per_prompt.shape[1]


class DualUpdate(L.Callback):
    """Stateless; see the module's docstring."""

    def __init__(  # noqa: PLR0913 - each is a part of what one round needs
        self,
        constraint: ConstraintConfig,
        policy: PolicyConfig,
        evaluator: PolicyEvaluator,
        prompts: Sequence[str],
        history: History,
        who: str,
        folder: Path,
        seed: int,
        say: Callable[[Row], None] = lambda row: None,
        feedback: Feedback = by_score,
    ) -> None:
        self.constraint, self.policy, self.evaluator = constraint, policy, evaluator
        self.prompts, self.history, self.who, self.folder = prompts, history, who, folder
        self.seed, self.say, self.feedback = seed, say, feedback

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One round of the loop when it is due; runs before the checkpoint of the epoch is written."""
        if (trainer.current_epoch + 1) % self.constraint.every_k_epochs:
            return
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        number = data.dual.round + 1
        chosen = choose_prompts(len(self.prompts), self.constraint.prompts, stream_seed(self.seed, Stream.DUAL_PROMPTS, number))
        seed = stream_seed(self.seed, Stream.DUAL_SAMPLES, number)
        prompts = [self.prompts[i] for i in chosen.tolist()]
        with whole_model(trainer, pl_module.model) as model:  # type: ignore[arg-type]
            measured = self.evaluator.measure(model, prompts, self.constraint.samples_per_prompt, seed)
            before, table = data.dual, data.table
            row = self.step(data, measured, chosen)
        if self._note_best(data, measured):
            self._save(host_copies(trainer, learned(pl_module.model)))  # type: ignore[arg-type]
        ranks.require_equal("lambda", data.dual.lam)
        if data.objective.relabels:
            row["dual/label_flips"] = label_flips(table, before.lam, data.dual.lam)
        if self.policy.refresh:
            data.refresh(on_policy_pairs(measured, data.base, chosen, self.policy.refresh, self.seed, number))
        location = {"stage": "policy", "who": self.who, "epoch": trainer.current_epoch, "step": trainer.global_step}
        self.history.log(**location, **row)
        shown = {k: v for k, v in row.items() if k.startswith("dual/")} | {"dual/round": float(data.dual.round)}
        pl_module.log_dict(shown, sync_dist=ranks.world_size() > 1)
        self.say({**location, **row, "dual/c_limit": self.constraint.c_limit})

    def step(self, data: PairDataModule, measured: Measurement, chosen: Tensor) -> Row:
        """Steps lambda in the data module; what the history is told of it."""
        state, beta = data.dual, self.policy.beta
        seed = stream_seed(self.seed, Stream.SAFETY_ORACLE, state.round + 1)
        cost = clustered_mean(self.feedback(measured.cost, seed), measured.prompt)
        variance = within_cluster_variance(measured.cost, measured.prompt)
        lam, integral = next_lambda(self.constraint, beta, state, cost, variance)
        lowest = min(state.lowest_cost, _mean_lowest(data, measured, chosen))
        violation = cost.mean - self.constraint.c_limit
        alarm = "none"
        if self.constraint.kind == "dual":
            alarm = dual.alarm(lam, self.constraint.lambda_max, violation, cost.se, lowest, self.constraint.c_limit)
        data.update(
            lam=lam,
            integral=integral,
            round=state.round + 1,
            sampled=state.sampled + len(measured.samples),
            sampled_tokens=state.sampled_tokens + measured.tokens,
            scored=state.scored + measured.scored,
            lowest_cost=lowest,
            expected_cost=cost.mean,
            expected_cost_se=cost.se,
            alarm=alarm,
        )
        utility = data.objective.utility(measured.reward, measured.cost, state.lam)
        return {
            "round": data.dual.round,
            "dual/lambda": state.lam,
            "dual/lambda_next": lam,
            "dual/expected_cost": cost.mean,
            "dual/expected_cost_se": cost.se,
            "dual/violation": violation,
            "dual/effective_sample_size": effective_share(measured, utility, beta),
            **measured.facts(),
        }

    def _note_best(self, data: PairDataModule, measured: Measurement) -> bool:
        """Notes in the data module, and says, that this round meets the limit with the best E[r] - beta KL of those that did."""
        kl = float((measured.policy_logp - measured.reference_logp).mean())
        value = float(data.objective.utility(measured.reward, measured.cost, 0.0).mean()) - self.policy.beta * kl
        if data.dual.expected_cost > self.constraint.c_limit or value <= data.dual.best_value:
            return False
        data.update(best_round=data.dual.round, best_value=value)
        return True

    def _save(self, weights: dict[str, Tensor]) -> None:
        if ranks.is_first():
            with whole_file(self.folder / "best_feasible.safetensors") as temporary:
                save_file(weights, temporary)


def _mean_lowest(data: PairDataModule, measured: Measurement, chosen: Tensor) -> float:
    """Mean over prompts of the smallest cost among the data set's responses and these samples."""
    lowest = data.base.lowest_cost()
    lowest = lowest.scatter_reduce(0, chosen[measured.prompt], measured.cost.to(lowest.dtype), "amin")
    return float(lowest[lowest.isfinite()].mean())
