"""Builds the scorers: score models that are trained here or read from the store, published ones, or the world's true scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning import ranks
from cdpo_lightning.config import RunConfig, ScorerConfig
from cdpo_lightning.data.corpus import Corpus, ScoreExample, Split
from cdpo_lightning.errors import ConfigError, ModelError
from cdpo_lightning.evaluation.metrics import Metrics, scorer_metrics
from cdpo_lightning.models.heads.published import load_score_model
from cdpo_lightning.models.heads.score_model import from_causal_lm, pad
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.models.lm.packed_forward import compute_type
from cdpo_lightning.pipeline.base_model import StageInputs, restored, tokenizer_hash
from cdpo_lightning.pipeline.inference import Inference
from cdpo_lightning.registry import Registry
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.scorers.oracle import OracleScorer
from cdpo_lightning.scorers.scorer import Scorer
from cdpo_lightning.store.artifacts import digest
from cdpo_lightning.text.chat import RENDERING
from cdpo_lightning.text.templates import encode_scored
from cdpo_lightning.training.data_modules.seeded_data import SeededData
from cdpo_lightning.training.fit import FitStage, fit, optimizer_steps
from cdpo_lightning.training.modules.cost import CostModule
from cdpo_lightning.training.modules.reward import RewardModule
from cdpo_lightning.training.modules.score import ScoreBatch, ScoreModule

SCORES = ("reward", "cost")
_UNIT_TEXTS = 256  # training responses whose scores set the unit, evenly spaced
_SCORE_MODULES: dict[str, type[ScoreModule]] = {"reward": RewardModule, "cost": CostModule}


MakeScorer = Callable[[StageInputs, str], tuple[Scorer, Metrics]]
SCORER_KINDS: Registry[MakeScorer] = Registry("scorers.kind")


def make_scorer(inputs: StageInputs, name: str) -> tuple[Scorer, Metrics]:
    """Return the scorer `name` of the configuration, and its metrics on held-out examples.

    Raises:
        ModelError: it is significantly worse than chance.
    """
    scorer, quality = SCORER_KINDS[scorer_kind(inputs.config, inputs.corpus, name)](inputs, name)
    require_better_than_chance(name, quality)
    return scorer, quality


def require_better_than_chance(name: str, quality: Metrics) -> None:
    """Raise an error if a held-out accuracy or AUROC is below one half by more than three standard errors of chance.

    Args:
        name: of the scorer, `reward` or `cost`.
        quality: `<name>/pair_accuracy`, `<name>/auroc` and their `_chance_se`; missing ones are not checked.

    Raises:
        ModelError: one of them is, so the sign of the score model or of the labels is reversed.
    """
    for figure, spread in (("pair_accuracy", f"{name}/pair_accuracy_chance_se"), ("auroc", f"{name}/auroc_chance_se")):
        value, error = quality.get(f"{name}/{figure}"), quality.get(spread)
        if value is not None and error is not None and value < 0.5 - 3 * error:
            raise ModelError(
                f"{name}: held-out {figure} is {value:.2f}, expected above one half (chance: 0.50 +- {error:.2f}); its labels or "
                f"its sign are the other way round: check the data's labels, and {name}.sign of a published model"
            )


def require_scorers(inputs: StageInputs) -> None:
    """Refuse a run with policies that would have to train a score model which `stages` leaves out.

    Raises:
        ConfigError: the store does not have that score model.
    """
    for name in SCORES:
        if scorer_kind(inputs.config, inputs.corpus, name) != "trained" or not needs_stored_scorer(inputs.config, name):
            continue
        if not inputs.store.holds(name, inputs.made_of(_config(inputs, name), _examples(inputs, name))):
            raise missing_scorer(name)


def needs_stored_scorer(config: RunConfig, name: str) -> bool:
    """Return whether the run needs the scorer `name` for its policies, and `stages` leaves its training out."""
    return bool({"policy", "evaluate"} & set(config.stages)) and name not in config.stages


def missing_scorer(name: str) -> ConfigError:
    """Return the error of a score model that is neither trained nor stored."""
    return ConfigError(f"stages: {name} is not among them and the store has no such model; add it, or set {name}.path")


def scorer_kind(config: RunConfig, corpus: Corpus, name: str) -> str:
    """Return the kind of the scorer `name`, a key of `SCORER_KINDS`: `oracle`, `published` or `trained`."""
    if corpus.world is not None and corpus.world.config.scores == "oracle":
        return "oracle"
    return "published" if getattr(config, name).path else "trained"


@SCORER_KINDS.register("oracle")
def oracle_scorer(inputs: StageInputs, name: str) -> tuple[Scorer, Metrics]:
    """Return the true score of the closed-form world."""
    world = inputs.corpus.world
    assert world is not None, "the kind says so"
    identity = digest("oracle", name, asdict(world.config), inputs.config.seed)
    return OracleScorer(world, name, identity), {}


@SCORER_KINDS.register("published")
def published_scorer(inputs: StageInputs, name: str) -> tuple[Scorer, Metrics]:
    """Return the score model of `path`, and its metrics on held-out examples."""
    scorer = load_published(inputs.config, inputs.inference, name)
    held_out = _examples(inputs, name).held_out
    rows = digest([asdict(e) for e in held_out])
    made_of = {"scorer": scorer.identity, "rows": rows, "precision": inputs.config.trainer.precision}
    checked = inputs.store.get(f"{name}_check", made_of, lambda: ({}, scorer_metrics(name, scorer, held_out)))
    return scorer, checked.meta


@SCORER_KINDS.register("trained")
def trained_scorer(inputs: StageInputs, name: str) -> tuple[Scorer, Metrics]:
    """Return the score model, trained here or read from the store, and its metrics on held-out examples."""
    config, data, run = _config(inputs, name), _examples(inputs, name), inputs.config
    model = from_causal_lm(inputs.base.model, run.model.scorer_layers)
    model.requires_grad_(True)  # the base model is frozen where it is the reference, or shares its weights with adapters
    causal_lm.freeze_lower_layers(model.backbone, run.model.scorer_trainable_layers)
    made_of = inputs.made_of(config, data)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        rows = _score_rows(inputs, name, data.train)
        loader = SeededData(rows, lambda r: max(map(len, r[1])), _collate, config.batch_size, run.seed)
        steps = optimizer_steps(loader.batches, config.epochs, run.trainer.accumulate_grad_batches)
        stage = FitStage(name, config.epochs, inputs.settings.folder / name)
        fit(_SCORE_MODULES[name](model, config, steps), loader, stage, inputs.settings)
        raw = _as_scorer(inputs.config, inputs.encoder.tokenizer, name, model.to(inputs.inference.device).eval(), "new")
        texts = [(e.prompt, text) for e in data.train for text in e.responses]
        unit = float(raw.score(texts[:: 1 + len(texts) // _UNIT_TEXTS]).std()) if config.unit_sd else 1.0
        facts = {f"{name}/unit": unit, **scorer_metrics(name, replace(raw, unit=unit), data.held_out)}
        return dict(model.named_parameters()), facts

    artifact = inputs.store.get(name, made_of, make)
    whole = restored(model, artifact, inputs.inference.device)
    scorer = _as_scorer(inputs.config, inputs.encoder.tokenizer, name, whole, f"{name}:{artifact.key}")
    return replace(scorer, unit=artifact.meta[f"{name}/unit"]), artifact.meta


def load_published(config: RunConfig, inference: Inference, name: str) -> ModelScorer:
    """Return the score model of `path` with its own tokenizer and its sign.

    Its weights have the type of the run's matrix products, because it is never trained; two models of seven billion parameters
    in float32 would not leave room for the policy.
    """
    own: ScorerConfig = getattr(config, name)
    model, tokenizer = load_score_model(own, inference.device, compute_type(config.trainer.precision))
    template = own.template or config.model.template
    read = (
        causal_lm.parameter_hash(model),
        tokenizer_hash(tokenizer),
        template,
        own.max_tokens,
        own.sign,
        *((RENDERING,) if template == "chat" else ()),
    )
    scorer = _as_scorer(config, tokenizer, name, model, f"{name}:{digest(*read)}")
    return replace(scorer, unit=float(own.sign), options={}, published=True)


def _config(inputs: StageInputs, name: str) -> ScorerConfig:
    config: ScorerConfig = getattr(inputs.config, name)
    return config


def _examples(inputs: StageInputs, name: str) -> Split[ScoreExample]:
    examples: Split[ScoreExample] = getattr(inputs.corpus, name)
    return examples


def _as_scorer(config: RunConfig, tokenizer: Any, name: str, model: nn.Module, identity: str) -> ModelScorer:
    own: ScorerConfig = getattr(config, name)
    return ModelScorer(
        model=model,
        tokenizer=tokenizer,
        template=own.template or config.model.template,
        max_tokens=own.max_tokens,
        batch_size=config.trainer.inference_batch,
        precision=config.trainer.precision,
        identity=identity,
        options=config.model.template_options,
    )


def _score_rows(inputs: StageInputs, name: str, items: Sequence[ScoreExample]) -> list[Any]:
    config = _config(inputs, name)
    template = config.template or inputs.config.model.template

    def ids(prompt: str, response: str) -> list[int]:
        return encode_scored(prompt, response, template, inputs.encoder.tokenizer, config.max_tokens, inputs.encoder.options)

    return [(e, [ids(e.prompt, text) for text in e.responses]) for e in items]


def _collate(batch: list[tuple[ScoreExample, list[list[int]]]]) -> ScoreBatch:
    """Return this rank's part of a batch: all responses in one list, with pairs and signs that index into it."""
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
