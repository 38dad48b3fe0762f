"""Prepares what stays constant while policies are trained and evaluated: data, reference, scorers, pairs, the exact problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cdpo_lightning.config import RunConfig
from cdpo_lightning.console import Screen
from cdpo_lightning.constraints.build import make_constraints
from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.data.corpus import Corpus, load_corpus
from cdpo_lightning.data.records import Demonstration
from cdpo_lightning.errors import DataError
from cdpo_lightning.evaluation.evaluator import PolicyEvaluator
from cdpo_lightning.evaluation.exact import ExactProblem
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
    make_encoder,
    make_trainables,
    require_context,
)
from cdpo_lightning.pipeline.constants import StoredConstants, TrainingPairs, exact_problem, make_training_pairs
from cdpo_lightning.pipeline.inference import Inference, make_inference
from cdpo_lightning.pipeline.scorers import SCORES, make_scorer, require_scorers, scorer_kind
from cdpo_lightning.pipeline.sft import fine_tune, sft_compute
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.scorers.scorer import Scorer, Text
from cdpo_lightning.store.artifacts import ForwardCounter, Store, digest
from cdpo_lightning.store.history import History
from cdpo_lightning.store.run_folder import begin_run
from cdpo_lightning.text.packing import TokenRow
from cdpo_lightning.training.fit import FitSettings
from cdpo_lightning.training.loggers import make_logger


@dataclass(frozen=True)
class EvaluationSetup:
    """The inputs of the evaluation of any policy, trained by this run or external."""

    corpus: Corpus
    constraints: Sequence[Constraint]
    evaluator: PolicyEvaluator
    inference: Inference
    constants: StoredConstants


@dataclass(frozen=True)
class MethodInputs:
    """The inputs that all methods share; none of them changes while policies are trained."""

    evaluator: PolicyEvaluator  # holds the reference, the scorers and the encoder
    constraints: Sequence[Constraint]
    pairs: TrainingPairs
    trainables: Trainables
    inference: Inference
    settings: FitSettings
    demonstrations: list[Demonstration]
    exact: ExactProblem | None  # in the closed-form world


def load_stage_inputs(config: RunConfig, folder: Path, store: Store, history: History, screen: Screen) -> StageInputs:
    """Return the inputs of the supervised stages: data and base model, checked, and the fit settings; begin the run's folder."""
    corpus = load_corpus(config.dataset, config.evaluation, config.seed)
    screen.data(corpus)
    require_examples(config, corpus)
    tokenizer = load_tokenizer(config.model)
    require_context(config.model)
    encoder = make_encoder(config.model, tokenizer)
    inference = make_inference(config)
    trainables = make_trainables(config, inference.device)
    base = load_base(trainables, tokenizer)
    if not supports_packing(base.model):
        screen.say(f"note: {type(base.model).__name__} cannot read rows of several responses: one response a row, which is slower")
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
    require_scorers(inputs)
    begin_run(config, folder)  # after all checks, so that a refused run can be started again in the same folder
    return inputs


def train_listed_stages(inputs: StageInputs, screen: Screen) -> Metrics:
    """Train SFT and the score models that `stages` lists, for a run without policies; return their metrics."""
    _, metrics = _reference(inputs, screen)
    for name in SCORES:
        if name in inputs.config.stages:
            metrics |= _scorer(inputs, name, screen)[1]
    counts = make_training_pairs(inputs.corpus.pairs, inputs.encoder, _no_constants, inputs.config.seed)[1]
    return metrics | _data_metrics(inputs.corpus) | counts


def build_evaluation(inputs: StageInputs, folder: Path, screen: Screen) -> tuple[EvaluationSetup, Metrics]:
    """Train or read SFT and the score models; return the inputs of the evaluation, and the metrics of these stages."""
    config, engine = inputs.config, make_engine(inputs.config, folder)
    reference, metrics = _reference(inputs, screen)
    scorers = {}
    for name in SCORES:
        scorers[name], quality = _scorer(inputs, name, screen)
        metrics |= quality
    for model in [reference.model, *(scorer.model for scorer in scorers.values() if isinstance(scorer, ModelScorer))]:
        inputs.inference.keep(model)
    evaluator = PolicyEvaluator(
        scorers=scorers,
        reference=reference.model,
        encoder=inputs.encoder,
        batch_size=config.trainer.inference_batch,
        sample_batch=config.trainer.sample_batch,
        precision=config.trainer.precision,
        engine=engine,
    )
    constants = StoredConstants(inputs.store, scorers, reference, inputs.inference, config.model.attention)
    constraints = make_constraints(config.constraint)
    setup = EvaluationSetup(inputs.corpus, constraints, evaluator, inputs.inference, constants)
    return setup, metrics | _data_metrics(inputs.corpus)


def _scorer(inputs: StageInputs, name: str, screen: Screen) -> tuple[Scorer, Metrics]:
    with screen.stage(name) as done:
        scorer, quality = make_scorer(inputs, name)
        done(quality)
    return scorer, quality


def _data_metrics(corpus: Corpus) -> Metrics:
    return {**corpus.metrics, "data/hash": digest([asdict(pair) for pair in corpus.pairs])}


def _no_constants(texts: Sequence[Text], rows: Sequence[TokenRow]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return no scores and zeros for log pi_ref: for a run that only counts its pairs."""
    return {}, torch.zeros(len(texts), dtype=torch.float64)


def _reference(inputs: StageInputs, screen: Screen) -> tuple[IdentifiedModel, Metrics]:
    """Return the frozen reference (the model after SFT, or the base model if `stages` has no `sft`), and the metrics of SFT."""
    config, base = inputs.config, inputs.base
    reference, metrics = IdentifiedModel(base.model, f"base:{base.identity}"), Metrics()
    if "sft" in config.stages:
        with screen.stage("sft") as done:
            reference, metrics = fine_tune(inputs)
            done(metrics)
        metrics = metrics | sft_compute(config, inputs.encoder, inputs.corpus.demonstrations.train).metrics("sft")
    identity = reference.identity + (f":{config.model.quantize}" if config.model.quantize else "")
    return IdentifiedModel(inputs.trainables.frozen(reference.model.requires_grad_(False)), identity), metrics


def make_method_inputs(inputs: StageInputs, setup: EvaluationSetup, screen: Screen) -> tuple[MethodInputs, Metrics]:
    """Return the inputs of the methods, and the counts of truncated texts and dropped pairs."""
    config, corpus = inputs.config, inputs.corpus
    with screen.stage("constants") as done:
        pairs, counts = make_training_pairs(corpus.pairs, inputs.encoder, setup.constants, config.seed)
        done({"responses": len(pairs.table.responses), "pairs": len(pairs.table)})
    method_inputs = MethodInputs(
        evaluator=setup.evaluator,
        constraints=setup.constraints,
        pairs=pairs,
        trainables=inputs.trainables,
        inference=inputs.inference,
        settings=inputs.settings,
        demonstrations=corpus.demonstrations.train,
        exact=exact_problem(corpus, setup.constraints, inputs.encoder, setup.constants, config.policy.beta),
    )
    return method_inputs, counts


def open_store(config: RunConfig, folder: Path) -> tuple[Store, History]:
    """Return the store that all runs share, with this run's counter of forward passes, and the run's history."""
    counter = ForwardCounter(folder / "ledger.json", config.resume)
    return Store(Path(config.artifacts_dir), counter), History(folder / "history.csv", config.resume)


def make_engine(config: RunConfig, folder: Path) -> VLLM | None:
    """Return the vLLM engine that samples in place of the policies, or None for `generation.engine=torch`.

    Raises:
        ModelError: it is not installed.
    """
    if config.generation.engine == "torch":
        return None
    return VLLM(folder / "generation", compute_type(config.trainer.precision), config.generation.gpu_memory)


def require_examples(config: RunConfig, corpus: Corpus) -> None:
    """Raise an error if a stage of the run has no data to train on.

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
    signs = {sign for example in corpus.cost.train for sign in example.signs if sign}
    if scorer_kind(config, corpus, "cost") == "trained" and len(signs) == 1:
        only = "unsafe" if 1 in signs else "safe"
        raise DataError(
            f"the cost model would learn from answers that are all labelled {only}: its zero could be anywhere; expected safe and "
            "unsafe ones: add safety labels (dataset.cost_labels), or set cost.path"
        )
