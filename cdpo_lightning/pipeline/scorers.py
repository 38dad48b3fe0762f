"""The reward and the cost model: trained here, read from the store, loaded from outside, or the world's own truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning import ranks
from cdpo_lightning.config import ScorerConfig
from cdpo_lightning.data.corpus import ScoreExample, Split
from cdpo_lightning.evaluation.evaluator import ModelScorer, OracleScorer, Scorer
from cdpo_lightning.evaluation.metrics import scorer_metrics
from cdpo_lightning.models.heads.published import load_score_model
from cdpo_lightning.models.heads.score_model import from_causal_lm, pad
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.models.lm.packed_forward import compute_type
from cdpo_lightning.pipeline.setup import Base, RunContext, made_of, optimizer_steps, restored, stage_of, tokenizer_hash
from cdpo_lightning.store.artifacts import digest
from cdpo_lightning.text.templates import encode_scored
from cdpo_lightning.training.data_modules.seeded_data import SeededData
from cdpo_lightning.training.modules.cost import CostModule
from cdpo_lightning.training.modules.reward import RewardModule
from cdpo_lightning.training.modules.score import ScoreBatch, ScoreModule

_UNIT_TEXTS = 256  # training responses whose scores set the unit, evenly spread
SCORE_MODULES: dict[str, type[ScoreModule]] = {"reward": RewardModule, "cost": CostModule}


def _collate_scores(batch: list[tuple[ScoreExample, list[list[int]]]]) -> ScoreBatch:
    """This rank's part of a batch: responses flat, pairs and signs beside them."""
    rows, pair_weight = ranks.batch_share(batch, lambda row: row[0].preferred is not None)
    rows, sign_weight = ranks.batch_share(batch, lambda row: sum(map(abs, row[0].signs)))
    ids: list[list[int]] = []
    pairs: list[tuple[int, int]] = []
    sign: list[int] = []
    for example, sequences in rows:
        first = len(ids)
        if example.preferred is not None:
            pairs.append((first + example.preferred, first + 1 - example.preferred))
        ids += sequences
        sign += example.signs
    input_ids, mask = pad(ids)
    pair_P2 = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
    return ScoreBatch(input_ids, mask, pair_P2, torch.tensor(sign), pair_weight, sign_weight)


def _score_rows(bench: RunContext, scorer: ScorerConfig, items: Sequence[ScoreExample]) -> list[Any]:
    template = scorer.template or bench.config.model.template

    def ids(prompt: str, response: str) -> list[int]:
        return encode_scored(prompt, response, template, bench.tokenizer, scorer.max_tokens)

    return [(e, [ids(e.prompt, text) for text in e.responses]) for e in items]


def train_scorer(bench: RunContext, kind: str, base: Base) -> tuple[Scorer, dict[str, Any]]:
    """The reward or the cost model as a scorer, and what it reached on held-out prompts."""
    config: ScorerConfig = getattr(bench.config, kind)
    data: Split = getattr(bench.corpus, kind)
    model = from_causal_lm(base.model, bench.config.model.scorer_layers)
    causal_lm.freeze_lower(model.backbone, bench.config.model.scorer_trainable_layers)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        rows = _score_rows(bench, config, data.train)
        loader = SeededData(rows, lambda r: max(map(len, r[1])), _collate_scores, config.batch_size, bench.config.seed)
        module = SCORE_MODULES[kind](model, config, optimizer_steps(bench, loader.batches, config.epochs))
        bench.fit(module, loader, stage_of(bench, kind, config))
        raw = _as_scorer(bench, kind, model.to(bench.device).eval(), "new", 1.0)
        texts = [(e.prompt, text) for e in data.train for text in e.responses]
        unit = float(raw.score(texts[:: 1 + len(texts) // _UNIT_TEXTS]).std()) if config.unit_sd else 1.0
        facts = scorer_metrics(kind, _as_scorer(bench, kind, model, "new", unit), data.held_out)
        return dict(model.named_parameters()), {f"{kind}/unit": unit, **facts}

    model, artifact = restored(model, bench.store.get(kind, made_of(bench, base, config, data), make), bench.device)
    return _as_scorer(bench, kind, model, f"{kind}:{artifact.key}", artifact.meta[f"{kind}/unit"]), artifact.meta


def _as_scorer(bench: RunContext, kind: str, model: nn.Module, identity: str, unit: float) -> ModelScorer:
    config: ScorerConfig = getattr(bench.config, kind)
    trainer = bench.config.trainer
    return ModelScorer(
        model=model,
        tokenizer=bench.tokenizer,
        template=config.template or bench.config.model.template,
        max_tokens=config.max_tokens,
        batch_size=trainer.inference_batch,
        precision=trainer.precision,
        identity=identity,
        unit=unit,
    )


def make_scorer(bench: RunContext, kind: str, base: Base) -> tuple[Scorer, dict[str, Any]]:
    """The scorer of the configuration: the truth of the world, a model from outside, or one trained here."""
    config: ScorerConfig = getattr(bench.config, kind)
    world = bench.corpus.world
    if world is not None and world.config.scores == "oracle":
        identity = digest("oracle", kind, asdict(world.config), bench.config.seed)
        return OracleScorer(world, ("reward", "cost").index(kind), identity), {}
    return published_scorer(bench, kind) if config.path else train_scorer(bench, kind, base)


def published_scorer(bench: RunContext, kind: str) -> tuple[Scorer, dict[str, Any]]:
    """The score model of `path`, and how well it does on our held-out examples."""
    scorer = load_published(bench, kind)
    held_out = getattr(bench.corpus, kind).held_out
    rows = digest([asdict(e) for e in held_out])
    made_of = {"scorer": scorer.identity, "rows": rows, "precision": bench.config.trainer.precision}
    checked = bench.store.get(f"{kind}_check", made_of, lambda: ({}, scorer_metrics(kind, scorer, held_out)))
    return scorer, checked.meta


def load_published(bench: RunContext, kind: str) -> ModelScorer:
    """The score model of `path` with its own tokenizer and its sign.

    Its weights are as wide as the run's matrix products: it is never trained, and two of seven billion parameters in float32 would
    not leave room for the policy.
    """
    config: ScorerConfig = getattr(bench.config, kind)
    dtype = compute_type(bench.config.trainer.precision)
    model, tokenizer = load_score_model(config, bench.device, dtype)
    template = config.template or bench.config.model.template
    read = (causal_lm.parameter_hash(model), tokenizer_hash(tokenizer), template, config.max_tokens, config.sign)
    identity = f"{kind}:{digest(*read)}"
    return replace(_as_scorer(bench, kind, model, identity, float(config.sign)), tokenizer=tokenizer, published=True)
