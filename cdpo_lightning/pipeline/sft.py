"""Supervised fine-tuning of the base model: the reference of everything after it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cdpo_lightning import ranks
from cdpo_lightning.data.records import Demonstration
from cdpo_lightning.models.adapters import lora as adapters
from cdpo_lightning.pipeline.methods.compute_budget import ComputeBudget
from cdpo_lightning.pipeline.setup import Base, RunContext, made_of, optimizer_steps, restored, stage_of, trainable
from cdpo_lightning.store.artifacts import Artifact
from cdpo_lightning.text.packing import Row, pack, row_length
from cdpo_lightning.training.data_modules.seeded_data import SeededData
from cdpo_lightning.training.modules.sft import SFTBatch, SFTModule

_PER_ROW = 8  # demonstrations of one prompt read side by side


def sft_rows(bench: RunContext, items: Sequence[Demonstration]) -> list[Row]:
    """One row for up to eight demonstrations of the same prompt, which is then read once for all of them."""
    by_prompt: dict[str, list[tuple[int, ...]]] = {}
    for item in items:
        by_prompt.setdefault(item.prompt, []).append(bench.encoder.response(item.response))
    parts = [(p, every[i : i + _PER_ROW]) for p, every in by_prompt.items() for i in range(0, len(every), _PER_ROW)]
    return [(bench.encoder.prompt(prompt), responses) for prompt, responses in parts]


def _tokens(row: Row) -> int:
    return sum(len(response) for response in row[1])


def _collate(batch: list[Row]) -> SFTBatch:
    """This rank's part of a batch."""
    rows, weight = ranks.batch_share(batch, _tokens)
    return SFTBatch(pack(rows), weight)


def _nats_per_token(bench: RunContext, model: nn.Module, rows: list[Row]) -> float:
    return -float(bench.logp(model, rows).sum()) / sum(map(_tokens, rows))


def sft_compute(bench: RunContext) -> ComputeBudget:
    """What SFT takes, whether this run trained or the store had it; seconds are not known then and left at 0."""
    rows = sft_rows(bench, bench.corpus.demonstrations.train) if "sft" in bench.config.stages else []
    return ComputeBudget(trained_tokens=bench.config.sft.epochs * sum(row_length(*row) for row in rows), models_resident=1)


def fine_tune(bench: RunContext, base: Base) -> tuple[nn.Module, Artifact]:
    """The base model after SFT on the demonstrations, and its artifact (`sft/loss` among its facts)."""
    config, data = bench.config, bench.corpus.demonstrations
    model = trainable(bench, base.model)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        loader = SeededData(sft_rows(bench, data.train), lambda r: row_length(*r), _collate, config.sft.batch_size, config.seed)
        module = SFTModule(model, config.sft, optimizer_steps(bench, loader.batches, config.sft.epochs))
        bench.fit(module, loader, stage_of(bench, "sft", config.sft))
        loss = _nats_per_token(bench, model.to(bench.device), sft_rows(bench, data.held_out)) if data.held_out else None
        return dict(adapters.merged(model, base.model).named_parameters()), {} if loss is None else {"sft/loss": loss}

    plain = copy.deepcopy(base.model) if adapters.are_in(model) else model
    return restored(plain, bench.store.get("sft", made_of(bench, base, config.sft, data), make), bench.full_precision)
