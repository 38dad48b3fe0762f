"""The data module of PPO-Lagrangian: every epoch's episodes are drawn from the policy as it is; the owner of lambda.

Random numbers belong to (seed, round), and lambda, the window of episode costs and the counts are in the checkpoint: a resumed run
draws and learns what an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from cdpo_lightning.config import ConstraintConfig, PPOConfig
from cdpo_lightning.data.batching import LengthBuckets, choose_prompts, sorted_batches
from cdpo_lightning.evaluation.evaluator import Measurement, PolicyEvaluator
from cdpo_lightning.maths import dual
from cdpo_lightning.maths.ppo import generalised_advantage, kl_coefficient, kl_streams, lagrangian_advantage
from cdpo_lightning.maths.statistics import clustered_mean
from cdpo_lightning.models.lm.packed_forward import numerics, response_token_logp
from cdpo_lightning.models.lm.placement import on_device
from cdpo_lightning.streams import Stream, generator, stream_seed
from cdpo_lightning.text.packing import PackedRows, Row, pack, row_length
from cdpo_lightning.training.data_modules.pair_data import DualState
from cdpo_lightning.training.modules.ppo import PPOBatch, PPOModule
from cdpo_lightning.training.strategies import whole_model

_PER_ROW = 8  # episodes of one prompt read side by side


@dataclass(frozen=True)
class EpisodeRow:
    """A prompt with some of its episodes, and the constants of their tokens one after the other: `token_6N` holds log pi, the
    advantage, the two old values and the two returns."""

    row: Row
    token_6N: Tensor


class Rollouts(L.LightningDataModule):
    """Samples, scores, steps lambda, works out advantages; then the round's batches, `passes` times over."""

    def __init__(
        self,
        module: PPOModule,
        evaluator: PolicyEvaluator,
        prompts: Sequence[str],
        constraint: ConstraintConfig,
        beta: float,
        seed: int,
        demonstrations: Sequence[Row] = (),
    ) -> None:
        super().__init__()
        self.module, self.evaluator, self.prompts = module, evaluator, list(prompts)
        self.ppo: PPOConfig = module.config
        self.constraint, self.beta, self.seed, self.demonstrations = constraint, beta, seed, demonstrations
        self.dual = DualState(lam=self.ppo.lambda_init)
        self.window: list[float] = []
        self.row: dict[str, Any] = {}  # what the history is told of the round

    def train_dataloader(self) -> DataLoader[PPOBatch]:
        """The round of the present epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        if epoch >= self.ppo.rounds:  # a stage that had ended is resumed: Lightning asks for a loader that it never reads
            return DataLoader([])
        # Resumed, Lightning asks for the last round's too, counts it and lets it go: not to be stepped twice.
        if epoch < self.dual.round:
            return DataLoader([None])
        prompts_seed, samples_seed = (stream_seed(self.seed, s, epoch + 1) for s in (Stream.DUAL_PROMPTS, Stream.DUAL_SAMPLES))
        chosen = choose_prompts(len(self.prompts), self.constraint.prompts, prompts_seed)
        prompts = [self.prompts[i] for i in chosen.tolist()]
        with self._whole(self.module.model) as model:
            measured = self.evaluator.measure(model, prompts, self.ppo.samples_per_prompt, samples_seed)
        self.step(measured)
        rows = self.episodes(measured, prompts)
        size = max(1, self.ppo.batch_size // _PER_ROW)
        lengths = [row_length(*episode.row) for episode in rows]
        first = epoch * self.ppo.passes
        batches = [b for n in range(self.ppo.passes) for b in LengthBuckets(lengths, size, self.seed, first + n)]
        collate = _Collate(self._demonstrations(epoch))
        return DataLoader(rows, batch_sampler=batches, collate_fn=collate, num_workers=0)

    def step(self, measured: Measurement) -> None:
        """Steps log lambda on the mean cost of the last `window` episodes [SafeRLHF]."""
        c, state = self.constraint, self.dual
        # Samples stand prompt by prompt: the i-th of every prompt first, so that a short window holds all prompts alike.
        costs = measured.cost.view(int(measured.prompt.max()) + 1, -1).T.flatten().tolist()
        self.window = [*self.window, *costs][-self.ppo.window :]
        mean = sum(self.window) / len(self.window)
        lam = dual.log_step(state.lam, mean, c.c_limit, c.lambda_lr, 1e-4, c.lambda_max)
        cost = clustered_mean(measured.cost, measured.prompt)
        violation = cost.mean - c.c_limit
        self.dual = replace(
            state,
            lam=lam,
            round=state.round + 1,
            sampled=state.sampled + len(measured.samples),
            sampled_tokens=state.sampled_tokens + measured.tokens,
            scored=state.scored + measured.scored,
            expected_cost=cost.mean,
            expected_cost_se=cost.se,
            alarm=dual.alarm(lam, c.lambda_max, violation, cost.se, None, c.c_limit),
        )
        self.row = {
            "round": self.dual.round,
            "dual/lambda": state.lam,
            "dual/lambda_next": lam,
            "dual/expected_cost": cost.mean,
            "dual/expected_cost_se": cost.se,
            "dual/violation": violation,
            **measured.facts(),
        }

    def episodes(self, measured: Measurement, prompts: Sequence[str]) -> list[EpisodeRow]:
        """The episodes of the round's prompts, with advantages under the present lambda."""
        ids = [self.evaluator.encoder.prompt(prompt) for prompt in prompts]
        per_prompt = len(measured.samples) // len(prompts)
        parts = [(p, range(i, min(i + _PER_ROW, per_prompt))) for p in range(len(ids)) for i in range(0, per_prompt, _PER_ROW)]
        rows: list[Row] = [(ids[p], [measured.samples[p * per_prompt + i].tokens for i in own]) for p, own in parts]
        token_6N = self._constants(rows, measured)
        counts = [sum(map(len, responses)) for _, responses in rows]
        return [EpisodeRow(row, part) for row, part in zip(rows, token_6N.split(counts, 1), strict=True)]

    def _constants(self, rows: list[Row], measured: Measurement) -> Tensor:
        """log pi, advantage, values and returns of every token, [6, N], episodes in the order of the samples."""
        flat = []
        with self._whole(self.module.model) as model:
            flat.append(self._per_token(lambda r: response_token_logp(model, r), rows))
        with on_device(self.evaluator.reference):
            flat.append(self._per_token(lambda r: response_token_logp(self.evaluator.reference, r), rows))
        for network in (self.module.reward_critic, self.module.cost_critic):
            with self._whole(network) as critic:
                flat.append(self._per_token(critic, rows))
        lengths = [len(s.tokens) for s in measured.samples]
        logp, reference, reward_value, cost_value = (pad_sequence(f.split(lengths), batch_first=True) for f in flat)
        mask = pad_sequence([torch.ones(n, dtype=torch.bool) for n in lengths], batch_first=True)
        kl = kl_coefficient(self.ppo.kl, self.beta, self.dual.lam)
        streams = kl_streams(measured.reward, measured.cost, logp, reference, mask, kl, self.ppo.score_clip)
        (reward_advantage, reward_return), (cost_advantage, cost_return) = (
            generalised_advantage(stream, value, mask, self.ppo.gamma, self.ppo.gae_lambda)
            for stream, value in zip(streams, (reward_value, cost_value), strict=True)
        )
        advantage = lagrangian_advantage(reward_advantage, cost_advantage, self.dual.lam)
        return torch.stack([t[mask] for t in (logp, advantage, reward_value, cost_value, reward_return, cost_return)])

    def _whole(self, network: nn.Module) -> AbstractContextManager[nn.Module]:
        return whole_model(self.trainer, network) if self.trainer else nullcontext(network)

    @torch.no_grad()
    def _per_token(self, network: Callable[[PackedRows], Tensor], rows: list[Row]) -> Tensor:
        """What the network says of every token, [N] float64, rows in order."""
        device = next(self.module.model.parameters()).device
        counts = [sum(map(len, responses)) for _, responses in rows]
        result: list[Tensor] = [torch.empty(0)] * len(rows)
        for batch in sorted_batches([row_length(*row) for row in rows], max(1, self.evaluator.batch_size // _PER_ROW)):
            with numerics(self.evaluator.precision, device):
                values = network(pack([rows[i] for i in batch]).to(device)).double().cpu()
            for i, part in zip(batch, values.split([counts[i] for i in batch]), strict=True):
                result[i] = part
        return torch.cat(result)

    def _demonstrations(self, epoch: int) -> list[Row]:
        """The demonstrations that ride along with the round's batches, in the order of (seed, epoch); none if ptx is off."""
        if not self.ppo.ptx or not self.demonstrations:
            return []
        order = torch.randperm(len(self.demonstrations), generator=generator(self.seed, Stream.DEMONSTRATION_ORDER, epoch))
        return [self.demonstrations[i] for i in order.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Lambda, the counts and the window."""
        return {"dual": dict(vars(self.dual)), "window": list(self.window)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.dual, self.window = DualState(**state_dict["dual"]), list(state_dict["window"])


class _Collate:
    """Makes a batch of a few rows; with each go as many rows of demonstrations, from where the last batch left off."""

    def __init__(self, demonstrations: list[Row]) -> None:
        self._demonstrations, self._next = demonstrations, 0

    def __call__(self, episodes: Sequence[EpisodeRow]) -> PPOBatch:
        token_6N = torch.cat([episode.token_6N for episode in episodes], 1).float()
        return PPOBatch(
            rows=pack([episode.row for episode in episodes]),
            old_logp=token_6N[0],
            advantage=token_6N[1],
            old_value_2N=token_6N[2:4],
            returns_2N=token_6N[4:6],
            demonstrations=self._ptx(len(episodes)),
        )

    def _ptx(self, count: int) -> PackedRows | None:
        if not self._demonstrations:
            return None
        chosen = [self._demonstrations[(self._next + i) % len(self._demonstrations)] for i in range(count)]
        self._next += count
        return pack(chosen)
