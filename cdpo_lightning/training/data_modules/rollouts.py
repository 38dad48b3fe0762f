"""The data module of PPO-Lagrangian: it draws every epoch's episodes from the current policy, and owns lambda.

Random numbers depend on (seed, round) alone; lambda, the window of episode costs and the counts are in the checkpoint. So a resumed
run gives the same numbers as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from cdpo_lightning.config import PPOConfig
from cdpo_lightning.constraints.constraint import REWARD, DualState, weighted_phi
from cdpo_lightning.constraints.dual_round import HistoryRow, dual_round
from cdpo_lightning.data.batching import LengthBuckets, sorted_batches
from cdpo_lightning.evaluation.evaluator import Measurement, PolicyEvaluator, SampleCounts
from cdpo_lightning.maths.ppo import generalised_advantage, kl_coefficient, kl_streams, lagrangian_advantage
from cdpo_lightning.models.lm.packed_forward import precision_context, response_token_logp
from cdpo_lightning.models.lm.placement import on_device
from cdpo_lightning.streams import Stream, generator
from cdpo_lightning.text.packing import PackedRows, TokenRow, pack, row_length
from cdpo_lightning.training.dual_loop import DualLoop, measure_round
from cdpo_lightning.training.modules.ppo import PPOBatch, PPOModule
from cdpo_lightning.training.strategies import whole_model

_PER_ROW = 8  # episodes of one prompt in a packed row


@dataclass(frozen=True)
class EpisodeRow:
    """A prompt with some of its episodes, and the constants of their N tokens.

    `token_XN` has one row each for log pi, the advantage, the old value of every critic, and the return of every critic.
    """

    row: TokenRow
    token_XN: Tensor


class Rollouts(L.LightningDataModule):
    """Draws and scores the episodes of a round, updates the multipliers, computes advantages, and makes the round's batches."""

    def __init__(
        self,
        module: PPOModule,
        evaluator: PolicyEvaluator,
        prompts: Sequence[str],
        loop: DualLoop,
        dual: DualState,
        demonstrations: Sequence[TokenRow] = (),
    ) -> None:
        super().__init__()
        self.module, self.evaluator, self.prompts = module, evaluator, list(prompts)
        self.ppo: PPOConfig = module.config
        self.loop, self.dual, self.demonstrations = loop, dual, demonstrations
        self.windows: dict[str, list[float]] = {c.name: [] for c in loop.constraints}  # phi of the last episodes
        self.counts = SampleCounts()
        self.row: HistoryRow = {}  # of the current round

    def train_dataloader(self) -> DataLoader[PPOBatch]:
        """Run the epoch's round; return its batches, `ppo.passes` times over the episodes."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        if epoch >= self.ppo.rounds:  # when a completed stage is resumed, Lightning requests a loader that it never reads
            return DataLoader([])
        # On a resume, Lightning also requests the loader of the last round, and drops it: lambda must not be updated twice.
        if epoch < self.dual.round:
            return DataLoader([None])
        with self._whole(self.module.model) as model:
            measured = measure_round(self.loop, self.evaluator, model, self.prompts, epoch + 1)
        self.step(measured)
        rows = self.episodes(measured)
        size = max(1, self.ppo.batch_size // _PER_ROW)
        lengths = [row_length(*episode.row) for episode in rows]
        first = epoch * self.ppo.passes
        batches = [b for n in range(self.ppo.passes) for b in LengthBuckets(lengths, size, self.loop.seed, first + n)]
        collate = _Collate(self._demonstrations(epoch))
        return DataLoader(rows, batch_sampler=batches, collate_fn=collate, num_workers=0)

    def step(self, measured: Measurement) -> None:
        """Run the dual round; the update takes the mean cost of the last `ppo.window` episodes [SafeRLHF]."""
        means = {}
        for c in self.loop.constraints:
            # Samples are ordered by prompt. Take the i-th of every prompt first, so that a short window covers all prompts alike.
            phi = self.dual.phi(c, measured.scores[c.score][c.covers(measured.prompt)])
            prompts = len(measured.prompt[c.covers(measured.prompt)].unique())
            window = [*self.windows[c.name], *phi.view(prompts, -1).T.flatten().tolist()][-self.ppo.window :]
            self.windows[c.name] = window
            means[c.name] = sum(window) / len(window) + c.measure.offset(self.dual.measure_memory.get(c.name, {}))
        self.dual, row = dual_round(measured, self.loop.constraints, self.dual, self.loop.update, self.loop.beta, values=means)
        self.counts = self.counts.plus(measured)
        self.row = {**row, **measured.facts()}

    def episodes(self, measured: Measurement) -> list[EpisodeRow]:
        """Return the episodes of the round's prompts, with advantages under the current multipliers."""
        numbers = measured.prompt.unique().tolist()
        ids = [self.evaluator.encoder.prompt(self.prompts[i]) for i in numbers]
        per_prompt = len(measured.samples) // len(ids)
        parts = [(p, range(i, min(i + _PER_ROW, per_prompt))) for p in range(len(ids)) for i in range(0, per_prompt, _PER_ROW)]
        rows: list[TokenRow] = [(ids[p], [measured.samples[p * per_prompt + i].tokens for i in own]) for p, own in parts]
        token_XN = self._constants(rows, measured)
        counts = [sum(map(len, responses)) for _, responses in rows]
        return [EpisodeRow(row, part) for row, part in zip(rows, token_XN.split(counts, 1), strict=True)]

    def _constants(self, rows: list[TokenRow], measured: Measurement) -> Tensor:
        """Return log pi, advantage, values and returns of every token, [2 + 2V, N] for V critics, in the order of the samples."""
        flat = self._token_outputs(rows)
        lengths = [len(s.tokens) for s in measured.samples]
        logp, reference, *values = (pad_sequence(f.split(lengths), batch_first=True) for f in flat)
        mask = pad_sequence([torch.ones(n, dtype=torch.bool) for n in lengths], batch_first=True)
        constraints = self.loop.constraints
        lam = [self.dual.lam[c.name] for c in constraints]
        costs = [weighted_phi(measured.scores, c, self.dual, measured.prompt) for c in constraints]
        kl = kl_coefficient(self.ppo.kl, self.loop.beta, sum(lam))
        streams = kl_streams(measured.scores[REWARD], torch.stack(costs), logp, reference, mask, kl, self.ppo.score_clip)
        pairs = [
            generalised_advantage(stream, value, mask, self.ppo.gamma, self.ppo.gae_lambda)
            for stream, value in zip(streams, values, strict=True)
        ]
        advantages, returns = zip(*pairs, strict=True)
        advantage = lagrangian_advantage(advantages[0], advantages[1:], lam)
        return torch.stack([t[mask] for t in (logp, advantage, *values, *returns)])

    def _token_outputs(self, rows: list[TokenRow]) -> list[Tensor]:
        """Return log pi, log pi_ref and the value of every critic, each of all tokens, [N]."""
        outputs = []
        with self._whole(self.module.model) as model:
            outputs.append(self._per_token(lambda r: response_token_logp(model, r), rows))
        with on_device(self.evaluator.reference):
            outputs.append(self._per_token(lambda r: response_token_logp(self.evaluator.reference, r), rows))
        for network in self.module.critics.values():
            with self._whole(network) as critic:
                outputs.append(self._per_token(critic, rows))
        return outputs

    def _whole(self, network: nn.Module) -> AbstractContextManager[nn.Module]:
        return whole_model(self.trainer, network) if self.trainer else nullcontext(network)

    @torch.no_grad()
    def _per_token(self, network: Callable[[PackedRows], Tensor], rows: list[TokenRow]) -> Tensor:
        """Return the network's output for every token of the rows, in order, [N] float64."""
        device = next(self.module.model.parameters()).device
        counts = [sum(map(len, responses)) for _, responses in rows]
        result: list[Tensor] = [torch.empty(0)] * len(rows)
        for batch in sorted_batches([row_length(*row) for row in rows], max(1, self.evaluator.batch_size // _PER_ROW)):
            with precision_context(self.evaluator.precision, device):
                values = network(pack([rows[i] for i in batch]).to(device)).double().cpu()
            for i, part in zip(batch, values.split([counts[i] for i in batch]), strict=True):
                result[i] = part
        return torch.cat(result)

    def _demonstrations(self, epoch: int) -> list[TokenRow]:
        """Return the demonstrations for the round's batches, in an order that depends on (seed, epoch); none if ptx is off."""
        if not self.ppo.ptx or not self.demonstrations:
            return []
        order = torch.randperm(len(self.demonstrations), generator=generator(self.loop.seed, Stream.DEMONSTRATION_ORDER, epoch))
        return [self.demonstrations[i] for i in order.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the dual loop, the counts and the windows."""
        windows = {name: list(window) for name, window in self.windows.items()}
        return {"dual": self.dual.state(), "counts": dict(vars(self.counts)), "windows": windows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.dual, self.counts = DualState(**state_dict["dual"]), SampleCounts(**state_dict["counts"])
        self.windows = {name: list(window) for name, window in state_dict["windows"].items()}


class _Collate:
    """Makes a batch from rows of episodes, and adds as many rows of demonstrations, which follow those of the last batch."""

    def __init__(self, demonstrations: list[TokenRow]) -> None:
        self._demonstrations, self._next = demonstrations, 0

    def __call__(self, episodes: Sequence[EpisodeRow]) -> PPOBatch:
        token_XN = torch.cat([episode.token_XN for episode in episodes], 1).float()
        critics = len(token_XN) // 2 - 1
        return PPOBatch(
            rows=pack([episode.row for episode in episodes]),
            old_logp=token_XN[0],
            advantage=token_XN[1],
            old_values_VN=token_XN[2 : 2 + critics],
            returns_VN=token_XN[2 + critics :],
            demonstrations=self._ptx(len(episodes)),
        )

    def _ptx(self, count: int) -> PackedRows | None:
        if not self._demonstrations:
            return None
        chosen = [self._demonstrations[(self._next + i) % len(self._demonstrations)] for i in range(count)]
        self._next += count
        return pack(chosen)
