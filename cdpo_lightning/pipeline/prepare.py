"""Everything that is constant while policies are trained and evaluated: data, reference, scorers, pairs, the exact problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cdpo_lightning.config import RunConfig
from cdpo_lightning.console import Screen
from cdpo_lightning.constraints.build import make_constraints
from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.data.corpus import Corpus, load_corpus
from cdpo_lightning.data.records import Demonstration
from cdpo_lightning.errors import DataError
from cdpo_lightning.evaluation.evaluator import PolicyEvaluator
from cdpo_lightning.evaluation.exact import ExactProblem, all_rows, all_texts
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.models.heads.published import require_folder
from cdpo_lightning.models.lm.packed_forward import compute_type, supports_packing
from cdpo_lightning.models.sampling.vllm_generation import VLLM
from cdpo_lightning.pipeline.base_model import (
    IdentifiedModel,
    StageInputs,
    Trainables,
    load_base,
    load_tokenizer,
    make_trainables,
    require_context,
)
from cdpo_lightning.pipeline.constants import Constants, StoredConstants, TrainingPairs, make_training_pairs
from cdpo_lightning.pipeline.inference import Inference, make_inference
from cdpo_lightning.pipeline.scorers import SCORES, make_scorer, scorer_kind
from cdpo_lightning.pipeline.sft import fine_tune, sft_compute
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.store.artifacts import ForwardCounter, Store, digest
from cdpo_lightning.store.history import History
from cdpo_lightning.store.run_folder import begin_run
from cdpo_lightning.text.templates import Encoder
from cdpo_lightning.training.fit import FitSettings
from cdpo_lightning.training.loggers import make_logger


@dataclass(frozen=True)
class EvaluationSetup:
    """What any policy is evaluated with, trained here or elsewhere."""

    corpus: Corpus
    constraints: Sequence[Constraint]
    evaluator: PolicyEvaluator
    inference: Inference
    constants: StoredConstants


@dataclass(frozen=True)
class MethodInputs:
    """What every method is trained with; none of it changes while policies are trained."""

    evaluator: PolicyEvaluator  # holds the reference, the scorers and the encoder
    constraints: Sequence[Constraint]
    pairs: TrainingPairs
    trainables: Trainables
    inference: Inference
    settings: FitSettings
    demonstrations: list[Demonstration]
    exact: ExactProblem | None  # in the closed-form world


def build_evaluation(
    config: RunConfig, folder: Path, store: Store, history: History, screen: Screen
) -> tuple[EvaluationSetup, Trainables, FitSettings, Metrics]:
    """Load data and models, train what evaluation needs (SFT, score models), and begin the run's folder.

    Returns:
        the setup, how trainable copies are made, how stages are trained, and what was measured on the way.
    """
    corpus = load_corpus(config.dataset, config.evaluation, config.seed)
    constraints = make_constraints(config.constraint)
    screen.data(corpus)
    require_examples(config, corpus)
    tokenizer = load_tokenizer(config.model)
    encoder = make_encoder(config, tokenizer)
    require_context(config.model)
    inference = make_inference(config)
    trainables = make_trainables(config, inference.device)
    engine = make_engine(config, folder)
    base = load_base(trainables, tokenizer)
    if not supports_packing(base.model):
        screen.say(f"note: {type(base.model).__name__} cannot read rows of several responses: one response a row, which is slower")
    begin_run(config, folder)  # not before: what is wrong with data or model is corrected and started again
    settings = FitSettings(
        trainer=config.trainer,
        history=history,
        folder=folder / "checkpoints",
        seed=config.seed,
        compile=config.model.compile,
        progress=screen.progress,
        logger_for=lambda who: make_logger(config.logger, folder, who, baseline=who != config.who),
    )
    inputs = StageInputs(config, corpus, encoder, base, trainables, inference, store, settings)
    reference, metrics = _reference(inputs, screen)
    metrics |= {**corpus.metrics, "data/hash": digest([asdict(pair) for pair in corpus.pairs])}
    scorers = {}
    for name in SCORES:
        with screen.stage(name) as done:
            scorers[name], quality = make_scorer(inputs, name)
            done(quality)
        metrics |= quality
    for model in [reference.model, *(scorer.model for scorer in scorers.values() if isinstance(scorer, ModelScorer))]:
        inference.keep(model)
    evaluator = PolicyEvaluator(
        scorers=scorers,
        reference=reference.model,
        encoder=encoder,
        batch_size=config.trainer.inference_batch,
        sample_batch=config.trainer.sample_batch,
        precision=config.trainer.precision,
        engine=engine,
    )
    constants = StoredConstants(store, scorers, reference, inference, config.model.attention)
    return EvaluationSetup(corpus, constraints, evaluator, inference, constants), trainables, settings, metrics


def _reference(inputs: StageInputs, screen: Screen) -> tuple[IdentifiedModel, Metrics]:
    """Return the reference, frozen: the model after SFT, or the base model where `stages` has no `sft`."""
    config, base = inputs.config, inputs.base
    reference, metrics = IdentifiedModel(base.model, f"base:{base.identity}"), Metrics()
    if "sft" in config.stages:
        with screen.stage("sft") as done:
            reference, metrics = fine_tune(inputs)
            done(metrics)
        metrics = metrics | sft_compute(config, inputs.encoder, inputs.corpus.demonstrations.train).metrics("sft")
    identity = reference.identity + (f":{config.model.quantize}" if config.model.quantize else "")
    return IdentifiedModel(inputs.trainables.frozen(reference.model.requires_grad_(False)), identity), metrics


def make_method_inputs(
    config: RunConfig, setup: EvaluationSetup, trainables: Trainables, settings: FitSettings, screen: Screen
) -> tuple[MethodInputs, Metrics]:
    """Return what methods are trained with: the pairs with their constants, and in the closed-form world the exact problem."""
    encoder = setup.evaluator.encoder
    with screen.stage("constants") as done:
        pairs, counts = make_training_pairs(setup.corpus.pairs, encoder, setup.constants, config.seed)
        done({"responses": len(pairs.table.responses), "pairs": len(pairs.table)})
    exact = exact_problem(setup.corpus, setup.constraints, encoder, setup.constants, config.policy.beta)
    demos = setup.corpus.demonstrations.train
    inputs = MethodInputs(setup.evaluator, setup.constraints, pairs, trainables, setup.inference, settings, demos, exact)
    return inputs, counts


def exact_problem(
    corpus: Corpus, constraints: Sequence[Constraint], encoder: Encoder, constants: Constants, beta: float
) -> ExactProblem | None:
    """Return the problem with all responses enumerated, in the closed-form world."""
    world = corpus.world
    if world is None:
        return None
    rows = all_rows([encoder.prompt(p) for p in world.prompts], [encoder.response(r) for r in world.responses])
    texts = all_texts(world)
    shape = (len(world.prompts), len(world.responses))
    scores, logp = constants(texts, rows)
    truth = {name: torch.tensor([world.score(name, *text) for text in texts], dtype=torch.float64) for name in SCORES}
    return ExactProblem(
        reference_logp=logp.view(shape),
        scores={name: score.view(shape) for name, score in scores.items()},
        truth={name: score.view(shape) for name, score in truth.items()},
        constraints=constraints,
        beta=beta,
        rows=rows,
    )


def make_encoder(config: RunConfig, tokenizer: Any) -> Encoder:
    """Return the policy's encoder of text to token ids."""
    model = config.model
    return Encoder(tokenizer, model.template, model.max_prompt_tokens, model.max_response_tokens)


def open_store(config: RunConfig, folder: Path) -> tuple[Store, History]:
    """Return the store of all runs, with this run's ledger, and the run's history."""
    ledger = ForwardCounter(folder / "ledger.json", config.resume)
    return Store(Path(config.artifacts_dir), ledger), History(folder / "history.csv", config.resume)


def make_engine(config: RunConfig, folder: Path) -> VLLM | None:
    """Return the engine that samples in the policies' place, if one is configured.

    Raises:
        ModelError: it is not installed.
    """
    if config.generation.engine == "torch":
        return None
    return VLLM(folder / "generation", compute_type(config.trainer.precision), config.generation.gpu_memory)


def require_examples(config: RunConfig, corpus: Corpus) -> None:
    """Refuse a run one of whose stages has nothing to learn from, before the first of them is trained.

    Raises:
        DataError: a stage has no data.
        ModelError: `reward.path` or `cost.path` is no folder.
    """
    dropped = corpus.metrics.get("data/dropped", 0)
    if not corpus.pairs:
        counts = f"dataset.pairs: no pair is left to train on, {dropped} were dropped and the others held out"
        raise DataError(f"{counts}; see dataset.on_conflict and dataset.held_out")
    if "sft" in config.stages and not corpus.demonstrations.train:
        raise DataError("stages holds sft, but dataset.demonstrations is empty; name a file or leave sft out of stages")
    for name, labels in (("reward", "better_response_id or dataset.reward_pairs"), ("cost", "safety labels")):
        require_folder(getattr(config, name).path)
        if scorer_kind(config, corpus, name) == "trained" and not getattr(corpus, name).train:
            raise DataError(f"the {name} model has nothing to learn from: add {labels}, or set {name}.path")
