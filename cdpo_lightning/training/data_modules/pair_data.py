"""The data module of the methods that fit pairs. It owns lambda, the scores, the label draws and the on-policy pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from cdpo_lightning import ranks
from cdpo_lightning.config import PolicyConfig
from cdpo_lightning.constraints.constraint import DualState
from cdpo_lightning.data.batching import LengthBuckets, ResumableLoader
from cdpo_lightning.data.pairs.objectives import Objective
from cdpo_lightning.data.pairs.pair_rows import GroupRow, group_rows, prompt_groups
from cdpo_lightning.data.pairs.pair_table import PairTable, concatenate
from cdpo_lightning.evaluation.evaluator import SampleCounts
from cdpo_lightning.maths.preference import anchor_weights
from cdpo_lightning.streams import Stream, generator
from cdpo_lightning.text.packing import PackedRows, pack, row_length

ExplorationBonus = Callable[[PairTable, DualState], Tensor]  # returns the nats [N] to add to log pi_ref of the table's responses
_ANCHOR_PROMPTS = 4  # prompts of a batch whose reference responses are added to it for the anchor


@dataclass(frozen=True)
class PolicyBatch:
    """A batch of B pairs of the R responses in its rows; with the anchor, also rows of reference responses."""

    rows: PackedRows
    reference_logp: Tensor  # [R], nats
    pair: Tensor  # [B, 2], indices of responses
    target: Tensor  # labels [B]
    temperature: float  # of the loss, units of the label's logit per nat
    anchor_rows: PackedRows | None = None
    anchor_weight: Tensor | None = None  # of each response of `anchor_rows`
    weight: float = 1.0  # of the mean loss over these pairs: this rank's share of the batch, times the number of ranks
    anchor_share: float = 1.0  # the same for the mean over the anchor's prompts

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that are read with a gradient."""
        return self.rows.tokens + (self.anchor_rows.tokens if self.anchor_rows is not None else 0)

    def to(self, device: torch.device | str, **_: Any) -> PolicyBatch:
        """Return the batch on `device`."""
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor | PackedRows) else v for k, v in vars(self).items()}
        return PolicyBatch(**moved)


@dataclass(frozen=True)
class BestRound:
    """The best round so far whose policy met every limit; number 0 if there is none."""

    number: int = 0
    value: float = float("-inf")  # E[r] - beta KL of its samples, reward units


class PairDataModule(L.LightningDataModule):
    """Owns the multipliers and derives the labels from them whenever it makes an epoch's loader, so no label is stale."""

    def __init__(
        self,
        table: PairTable,
        policy: PolicyConfig,
        objective: Objective,
        dual: DualState,
        seed: int,
        anchor: PairTable | None = None,
        exploration_bonus: ExplorationBonus | None = None,
    ) -> None:
        super().__init__()
        self.base, self.policy, self.objective, self.dual, self.seed = table, policy, objective, dual, seed
        self.anchor, self.exploration_bonus = anchor, exploration_bonus
        self.fresh: list[PairTable] = []  # on-policy pairs of the last rounds
        self.counts, self.best = SampleCounts(), BestRound()

    @property
    def table(self) -> PairTable:
        """The pairs of the data set and the on-policy pairs of the last rounds."""
        return concatenate([self.base, *self.fresh])

    def refresh(self, table: PairTable) -> None:
        """Add a round's on-policy pairs; keep those of the last `policy.refresh_window` rounds."""
        self.fresh = [*self.fresh, table][-self.policy.refresh_window :]

    def train_dataloader(self) -> ResumableLoader:
        """Return the epoch's batches, with labels under the current lambda, in an order that depends on (seed, epoch) alone."""
        table, epoch = self.table, self.trainer.current_epoch if self.trainer else 0
        target = self.objective.target(table, self.dual).float()
        per_row = min(self.policy.pairs_per_row, self.policy.batch_size)
        rows = group_rows(table, prompt_groups(table, per_row, self.seed, epoch))
        batch = max(1, self.policy.batch_size * len(rows) // len(table))  # rows that hold `batch_size` pairs on average
        order = LengthBuckets([row_length(row.prompt, row.responses) for row in rows], batch, self.seed, epoch)
        if self.exploration_bonus is not None and self.fresh:  # not before the first round: step 0 requires policy = reference
            table = replace(table, reference_logp_N=table.reference_logp_N + self.exploration_bonus(table, self.dual))
        collate = _Collate(table, target, self.objective.temperature(self.dual), self._anchor_weights(), self.seed, epoch)
        return ResumableLoader(rows, order, collate)

    def _anchor_weights(self) -> tuple[PairTable, Tensor] | None:
        if self.anchor is None or self.policy.anchor == 0:
            return None
        utility = self.objective.utility(self.anchor.scores, self.anchor.prompt_N, self.dual)
        weight = anchor_weights(utility, self.policy.beta, self.anchor.prompt_N, len(self.anchor.prompts))
        return self.anchor, weight.float()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the dual loop, the counts, the best round and the on-policy pairs."""
        counts, best = dict(vars(self.counts)), dict(vars(self.best))
        return {"dual": self.dual.state(), "counts": counts, "best": best, "fresh": [table.state() for table in self.fresh]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.dual = DualState(**state_dict["dual"])
        self.counts, self.best = SampleCounts(**state_dict["counts"]), BestRound(**state_dict["best"])
        self.fresh = [PairTable.from_state(state, self.base.prompts) for state in state_dict["fresh"]]


class _Collate:
    """Makes this rank's part of a batch from the batch's rows."""

    def __init__(
        self, table: PairTable, target: Tensor, temperature: float, anchor: tuple[PairTable, Tensor] | None, seed: int, epoch: int
    ) -> None:
        self._table, self._target, self._temperature, self._anchor = table, target, temperature, anchor
        self._seed, self._epoch = seed, epoch

    def __call__(self, batch_rows: Sequence[GroupRow]) -> PolicyBatch:
        rows, weight = ranks.batch_share(batch_rows, lambda row: len(row.pairs))
        offset, members, local = 0, [], []
        for row in rows:
            members += row.members
            local.append(torch.tensor(row.local) + offset)
            offset += len(row.responses)
        batch = PolicyBatch(
            rows=pack([(row.prompt, row.responses) for row in rows]),
            reference_logp=self._table.reference_logp_N[members].float(),
            pair=torch.cat(local),
            target=self._target[[pair for row in rows for pair in row.pairs]],
            weight=weight,
            temperature=self._temperature,
        )
        if self._anchor is None:
            return batch
        anchor_rows, anchor_weight, share = self._anchor_rows(batch_rows)
        return replace(batch, anchor_rows=anchor_rows, anchor_weight=anchor_weight, anchor_share=share)

    def _anchor_rows(self, rows: Sequence[GroupRow]) -> tuple[PackedRows, Tensor, float]:
        """Return rows of all reference responses to a few of the batch's prompts, their weights, and the share of this rank.

        The draw depends on (seed, epoch, first pair of the batch) alone, so that all ranks draw the same.
        """
        assert self._anchor is not None
        table, weight = self._anchor
        prompts = sorted({row.number for row in rows})
        draws = generator(self._seed, Stream.ANCHOR_PROMPTS, self._epoch, rows[0].pairs[0])
        chosen = [prompts[i] for i in torch.randperm(len(prompts), generator=draws)[:_ANCHOR_PROMPTS].tolist()]
        chosen, share = ranks.batch_share(chosen, lambda prompt: 1)
        members = [(table.prompt_N == p).nonzero()[:, 0].tolist() for p in chosen]
        texts = [(table.prompts[p], [table.responses[i] for i in own]) for p, own in zip(chosen, members, strict=True)]
        return pack(texts), weight[[i for own in members for i in own]], share
