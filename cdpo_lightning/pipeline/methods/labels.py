"""The pairs that a preference method is trained on, with labels from the scores or from annotators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cdpo_lightning.config import ResolvedMethod
from cdpo_lightning.constraints.constraint import REWARD
from cdpo_lightning.data.pairs.objectives import FixedLabels, Objective
from cdpo_lightning.data.pairs.pair_table import PairTable
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.errors import DataError
from cdpo_lightning.maths.preference import safety_first
from cdpo_lightning.pipeline.constants import TrainingPairs


def better_labels(pairs: Sequence[PreferencePair]) -> Tensor:
    """Return 1 where annotators prefer response_1, 0 where response_0, nan where there is no label, [M]."""
    return _labels([pair.better for pair in pairs])


def safer_labels(pairs: Sequence[PreferencePair]) -> Tensor:
    """Return 1 where annotators find response_1 safer, 0 where response_0, nan where there is no label, [M]."""
    return _labels([pair.safer for pair in pairs])


def _labels(labels: Sequence[int | None]) -> Tensor:
    return torch.tensor([float("nan") if label is None else float(label) for label in labels], dtype=torch.float64)


def unsafe_flags(pairs: Sequence[PreferencePair], table: PairTable) -> Tensor:
    """Return whether each response of each pair is unsafe, bool [M, 2], by its label; without a label, whether its cost is > 0."""
    by_cost = (table.scores["cost"][table.pair_M2] > 0).tolist()
    rows = [
        [cost if safe is None else not safe for safe, cost in zip(pair.safe, own, strict=True)]
        for pair, own in zip(pairs, by_cost, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.bool).view(-1, 2)


def select_pairs(pairs: TrainingPairs, method: ResolvedMethod, objective: Objective) -> tuple[PairTable, Objective]:
    """Return the pairs that a method is trained on, and its objective.

    These are all pairs and `objective`, unless the method takes annotators' labels or prefers safe responses (SafeDPO).
    """
    table = pairs.table
    if not (method.human or method.spec.safety_first):
        return table, objective
    label = better_labels(pairs.records) if method.human else table.target(table.scores[REWARD], "bernoulli")
    if method.spec.safety_first:
        label = safety_first(label, unsafe_flags(pairs.records, table))
    return with_labels(table, label, objective, method.who)


def with_labels(table: PairTable, label: Tensor, objective: Objective, who: str) -> tuple[PairTable, Objective]:
    """Return the pairs with a label that is not nan, and the objective with these labels.

    Raises:
        DataError: no pair has a label.
    """
    kept = (~label.isnan()).nonzero()[:, 0]
    if not len(kept):
        raise DataError(
            f"{who}: none of {len(table)} pairs has a label it can use; add labels to the data, or method.preferences=scores"
        )
    return replace(table, pair_M2=table.pair_M2[kept], draw_M=table.draw_M[kept]), FixedLabels(objective, label[kept])
