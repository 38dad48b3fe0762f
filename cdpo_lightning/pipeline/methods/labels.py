"""Which pairs a preference method learns from and by whose labels: the scores', or those that people gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cdpo_lightning.config import ResolvedMethod
from cdpo_lightning.data.pairs.objectives import FixedLabels, Objective
from cdpo_lightning.data.pairs.pair_table import PairTable
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.errors import DataError
from cdpo_lightning.maths.preference import safety_first
from cdpo_lightning.pipeline.prepare import Prepared


def better_labels(pairs: Sequence[PreferencePair]) -> Tensor:
    """1 where people prefer response_1, 0 where response_0, nan where they did not say, [M]."""
    return _labels([pair.better for pair in pairs])


def safer_labels(pairs: Sequence[PreferencePair]) -> Tensor:
    """1 where people find response_1 safer, 0 where response_0, nan where they did not say, [M]."""
    return _labels([pair.safer for pair in pairs])


def _labels(given: Sequence[int | None]) -> Tensor:
    return torch.tensor([float("nan") if label is None else float(label) for label in given], dtype=torch.float64)


def unsafe_flags(pairs: Sequence[PreferencePair], table: PairTable) -> Tensor:
    """Whether each response of each pair is unsafe, bool [M, 2]: as labelled, else by the sign of its cost."""
    by_cost = (table.cost_N[table.pair_M2] > 0).tolist()
    rows = [
        [cost if safe is None else not safe for safe, cost in zip(pair.safe, own, strict=True)]
        for pair, own in zip(pairs, by_cost, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.bool).view(-1, 2)


def learnt_from(prepared: Prepared, plan: ResolvedMethod, objective: Objective) -> tuple[PairTable, Objective]:
    """The pairs that the plan trains on and the objective with their labels: all and its own, unless people or safety decide."""
    table = prepared.table
    if not (plan.human or plan.spec.safety_first):
        return table, objective
    label = better_labels(prepared.pairs) if plan.human else table.target(0.0, "bernoulli")
    if plan.spec.safety_first:
        label = safety_first(label, unsafe_flags(prepared.pairs, table))
    return with_labels(table, label, objective, plan.who)


def with_labels(table: PairTable, label: Tensor, objective: Objective, who: str) -> tuple[PairTable, Objective]:
    """The pairs that have a label (others are nan), and the objective on these labels.

    Raises:
        DataError: no pair has one.
    """
    kept = (~label.isnan()).nonzero()[:, 0]
    if not len(kept):
        raise DataError(
            f"{who}: none of {len(table)} pairs has a label it can use; add labels to the data, or method.preferences=scores"
        )
    return replace(table, pair_M2=table.pair_M2[kept], draw_M=table.draw_M[kept]), FixedLabels(objective, label[kept])
