"""The data module of the supervised stages: batches of rows of similar length, in an order that depends on (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from cdpo_lightning.data.batching import LengthBuckets, ResumableLoader


class SeededData(L.LightningDataModule):
    """Makes batches of rows; `length` returns the tokens of a row, `collate` makes a batch of some rows."""

    def __init__(
        self,
        rows: Sequence[Any],
        length: Callable[[Any], int],
        collate: Callable[[list[Any]], Any],
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.rows, self.collate, self.batch_size, self.seed = rows, collate, batch_size, seed
        self.lengths = [length(row) for row in rows]

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def train_dataloader(self) -> ResumableLoader:
        """Return the batches of the current epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        order = LengthBuckets(self.lengths, self.batch_size, self.seed, epoch)
        return ResumableLoader(self.rows, order, self.collate)
