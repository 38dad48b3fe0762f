"""Supervised fine-tuning of the base model, whose result is the reference of all methods."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cdpo_lightning import ranks
from cdpo_lightning.config import RunConfig
from cdpo_lightning.data.records import Demonstration
from cdpo_lightning.models.adapters import lora
from cdpo_lightning.pipeline.base_model import IdentifiedModel, StageInputs, restored
from cdpo_lightning.pipeline.compute_budget import ComputeBudget
from cdpo_lightning.text.packing import TokenRow, pack, row_length
from cdpo_lightning.text.templates import Encoder
from cdpo_lightning.training.data_modules.seeded_data import SeededData
from cdpo_lightning.training.fit import FitStage, fit, optimizer_steps
from cdpo_lightning.training.modules.sft import SFTBatch, SFTModule

_PER_ROW = 8  # demonstrations of one prompt in one row


def sft_rows(encoder: Encoder, items: Sequence[Demonstration]) -> list[TokenRow]:
    """Return rows of a prompt and up to eight of its demonstrations, so that the prompt is read once for all of them."""
    by_prompt: dict[str, list[tuple[int, ...]]] = {}
    for item in items:
        by_prompt.setdefault(item.prompt, []).append(encoder.response(item.response))
    parts = [(p, every[i : i + _PER_ROW]) for p, every in by_prompt.items() for i in range(0, len(every), _PER_ROW)]
    return [(encoder.prompt(prompt), responses) for prompt, responses in parts]


def sft_compute(config: RunConfig, encoder: Encoder, items: Sequence[Demonstration]) -> ComputeBudget:
    """Return the compute of SFT, whether it was trained or read from the store; the seconds are not counted."""
    rows = sft_rows(encoder, items) if "sft" in config.stages else []
    return ComputeBudget(trained_tokens=config.sft.epochs * sum(row_length(*row) for row in rows), models_resident=1)


def fine_tune(inputs: StageInputs) -> tuple[IdentifiedModel, dict[str, Any]]:
    """Return the base model after SFT on the demonstrations, and its held-out loss (`sft/loss`, nats a token)."""
    config, encoder, data = inputs.config, inputs.encoder, inputs.corpus.demonstrations
    model = inputs.trainables.copy_of(inputs.base.model)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        rows = sft_rows(encoder, data.train)
        loader = SeededData(rows, lambda r: row_length(*r), _collate, config.sft.batch_size, config.seed)
        steps = optimizer_steps(loader.batches, config.sft.epochs, config.trainer.accumulate_grad_batches)
        stage = FitStage("sft", config.sft.epochs, inputs.settings.folder / "sft")
        fit(SFTModule(model, config.sft, steps), loader, stage, inputs.settings)
        facts = {}
        if data.held_out:
            held_out = sft_rows(encoder, data.held_out)
            logp = inputs.inference.logp(model.to(inputs.inference.device), held_out)
            facts["sft/loss"] = -float(logp.sum()) / sum(map(_tokens, held_out))
        return dict(lora.merged(model, inputs.base.model).named_parameters()), facts

    plain = copy.deepcopy(inputs.base.model) if lora.has_adapters(model) else model
    artifact = inputs.store.get("sft", inputs.made_of(config.sft, data), make)
    tuned = restored(plain, artifact, inputs.trainables.full_precision_device)
    return IdentifiedModel(tuned, f"sft:{artifact.key}"), artifact.meta


def _tokens(row: TokenRow) -> int:
    return sum(len(response) for response in row[1])


def _collate(batch: list[TokenRow]) -> SFTBatch:
    """Return this rank's part of a batch."""
    rows, weight = ranks.batch_share(batch, _tokens)
    return SFTBatch(pack(rows), weight)
