"""The dual loop: every K epochs, measure the constraints on the policy's own samples, update lambda and add on-policy pairs.

    trainer = Trainer(callbacks=[DualUpdate(loop, evaluator, prompts, log, folder, refresh=128)])

The callback has no state. The data module holds lambda and the rest of the loop's state: it derives the labels of the next epoch
from it and saves it in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor

from cdpo_lightning import ranks
from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.dual_round import Feedback, HistoryRow, Oracle, Samples, dual_round, exact_feedback
from cdpo_lightning.data.pairs.pair_table import PairTable, draws, label_flips
from cdpo_lightning.evaluation.evaluator import Measurement, PolicyEvaluator
from cdpo_lightning.maths.dual import effective_sample_size
from cdpo_lightning.models.adapters.lora import policy_parameters
from cdpo_lightning.store.files import atomic_file
from cdpo_lightning.streams import Stream, generator, stream_seed
from cdpo_lightning.training.callbacks.round_log import RoundLog
from cdpo_lightning.training.data_modules.pair_data import BestRound, PairDataModule
from cdpo_lightning.training.dual_loop import DualLoop, measure_round
from cdpo_lightning.training.strategies import host_copies, whole_model


def on_policy_pairs(measured: Measurement, base: PairTable, per_prompt: int, seed: int, number: int) -> PairTable:
    """Return random pairs of the samples of each prompt, with the scores and log-probabilities of the round's measurement.

    Pairs of equal responses are left out.

    Args:
        measured: the samples of a round.
        base: the table of the data set, which has the samples' prompts.
        per_prompt: the number of pairs to draw for each prompt.
        seed: of the run.
        number: of the round; seed and round decide the pairs and their label draws.
    """
    pairing = generator(seed, Stream.DUAL_PAIRING, number)
    keys = [(s.prompt, s.tokens) for s in measured.samples]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # the first of equal samples
    kept = sorted(first.values())
    index = {keys[i]: n for n, i in enumerate(kept)}
    unique = torch.tensor([index[key] for key in keys])
    drawn = []
    for prompt in measured.prompt.unique().tolist():
        own = (measured.prompt == prompt).nonzero()[:, 0]
        drawn.append(unique[own[torch.randint(len(own), (per_prompt, 2), generator=pairing)]])
    pairs = torch.cat(drawn)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return PairTable(
        prompts=base.prompts,
        responses=tuple(measured.samples[i].tokens for i in kept),
        prompt_N=measured.prompt[kept],
        scores={name: score[kept] for name, score in measured.scores.items()},
        reference_logp_N=measured.reference_logp[kept],
        pair_M2=pairs,
        draw_M=draws(len(pairs), stream_seed(seed, Stream.LABEL_DRAWS, number)),
    )


def effective_share(measured: Measurement, utility: Tensor, beta: float) -> float:
    """Return the effective sample size of the samples as draws from pi_ref exp(utility / beta), divided by their number.

    It is in (0, 1], and 1 if the policy is that optimum.
    """
    weight = measured.reference_logp + utility / beta - measured.policy_logp
    per_prompt = weight.view(len(measured.prompt.unique()), -1)
    return float(effective_sample_size(per_prompt).mean()) / per_prompt.shape[1]


def lowest_seen(constraints: Sequence[Constraint], dual: DualState, table: PairTable, samples: Samples) -> dict[str, float]:
    """Return the mean over prompts of the smallest phi among the table's responses and the samples, by constraint.

    Prompts without a response are left out. If an earlier round had a smaller mean, that is returned.
    """
    lowest = {}
    for c in constraints:
        of_table = table.lowest(dual.phi(c, table.scores[c.score]))
        of_samples = dual.phi(c, samples.scores[c.score]).to(of_table.dtype)
        smallest = of_table.scatter_reduce(0, samples.prompt, of_samples, "amin")
        counted = smallest.isfinite() & c.covers(torch.arange(len(smallest)))
        lowest[c.name] = min(dual.lowest.get(c.name, torch.inf), float(smallest[counted].mean()))
    return lowest


class DualUpdate(L.Callback):
    """Runs a dual round every K epochs; see the module's docstring."""

    def __init__(
        self,
        loop: DualLoop,
        evaluator: PolicyEvaluator,
        prompts: Sequence[str],
        round_log: RoundLog,
        folder: Path,
        refresh: int = 0,
        feedback: Feedback = exact_feedback,
    ) -> None:
        self.loop, self.evaluator, self.prompts, self.round_log = loop, evaluator, prompts, round_log
        self.folder, self.refresh, self.feedback = folder, refresh, feedback

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run one round when it is due, before the checkpoint of the epoch is written."""
        if (trainer.current_epoch + 1) % self.loop.every_k_epochs:
            return
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        number = data.dual.round + 1
        with whole_model(trainer, pl_module.model) as model:  # type: ignore[arg-type]
            measured = measure_round(self.loop, self.evaluator, model, self.prompts, number)
            before, table = data.dual, data.table
            row = self.step(data, measured)
        if self._is_best(data, measured):
            self._save(host_copies(trainer, policy_parameters(pl_module.model)))  # type: ignore[arg-type]
        ranks.require_equal("lambda", dict(data.dual.lam))
        if data.objective.relabels:
            utilities = [data.objective.utility(table.scores, table.prompt_N, dual) for dual in (before, data.dual)]
            row["dual/label_flips"] = label_flips(table, *utilities)
        if self.refresh:
            data.refresh(on_policy_pairs(measured, data.base, self.refresh, self.loop.seed, number))
        self.round_log(trainer, pl_module, row)

    def step(self, data: PairDataModule, measured: Measurement) -> HistoryRow:
        """Update the multipliers in the data module; return the round's row of history.csv."""
        before, loop = data.dual, self.loop
        data.dual, row = dual_round(
            measured,
            loop.constraints,
            before,
            loop.update,
            loop.beta,
            lowest=lowest_seen(loop.constraints, before, data.base, measured),
            oracle=Oracle(self.feedback, stream_seed(loop.seed, Stream.SAFETY_ORACLE, before.round + 1)),
        )
        data.counts = data.counts.plus(measured)
        utility = data.objective.utility(measured.scores, measured.prompt, before)
        return {**row, "dual/effective_sample_size": effective_share(measured, utility, loop.beta), **measured.facts()}

    def _is_best(self, data: PairDataModule, measured: Measurement) -> bool:
        """Return whether this round meets every limit with the highest E[r] - beta KL so far; if so, record it in `data.best`."""
        without = replace(data.dual, lam=dict.fromkeys(data.dual.lam, 0.0))
        kl = float((measured.policy_logp - measured.reference_logp).mean())
        reward = float(data.objective.utility(measured.scores, measured.prompt, without).mean())
        value = reward - self.loop.beta * kl
        met = all(data.dual.measured[c.name] <= c.limit for c in self.loop.constraints)
        if met and value > data.best.value:
            data.best = BestRound(data.dual.round, value)
            return True
        return False

    def _save(self, weights: dict[str, Tensor]) -> None:
        if ranks.is_first():
            with atomic_file(self.folder / "best_feasible.safetensors") as temporary:
                save_file(weights, temporary)
