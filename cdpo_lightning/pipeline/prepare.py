"""Everything that is constant while policies are trained: data, reference, scorers, and the pairs with their constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from cdpo_lightning.config import RunConfig
from cdpo_lightning.console import Screen
from cdpo_lightning.data.corpus import load_corpus
from cdpo_lightning.data.pairs.pair_table import PairTable
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.evaluation.evaluator import ModelScorer, PolicyEvaluator
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.models.lm.packed_forward import compute_type, reads_packed
from cdpo_lightning.models.sampling.vllm_generation import VLLM
from cdpo_lightning.pipeline.constants import Constants, make_table, stored_reference_logp, stored_scores
from cdpo_lightning.pipeline.scorers import make_scorer
from cdpo_lightning.pipeline.setup import RunContext, frozen, load_base, load_tokenizer, require_context, require_examples
from cdpo_lightning.pipeline.sft import fine_tune, sft_compute
from cdpo_lightning.store.artifacts import Ledger, Store, digest
from cdpo_lightning.store.history import History
from cdpo_lightning.store.run_folder import begin_run
from cdpo_lightning.text.packing import Row


@dataclass(frozen=True)
class EvaluationSetup:
    """What any policy is judged with, trained here or elsewhere."""

    bench: RunContext
    evaluator: PolicyEvaluator
    reference: nn.Module
    reference_identity: str
    metrics: Metrics


@dataclass(frozen=True)
class Prepared(EvaluationSetup):
    """Everything that is constant while policies are trained."""

    table: PairTable
    pairs: list[PreferencePair]  # of the table, with what people said of them
    prompts: list[str]


def prepare(config: RunConfig, folder: Path, screen: Screen) -> Prepared:
    """Data, reference, scorers and the constants of the pairs."""
    setup = build_evaluation(config, folder, screen)
    bench, evaluator, identity = setup.bench, setup.evaluator, setup.reference_identity
    with screen.stage("constants") as done:
        table, pairs, prompts, cut = make_table(bench, constants_from(bench, evaluator, identity))
        done({"responses": len(table.responses), "pairs": len(table)})
    return Prepared(bench, evaluator, setup.reference, identity, setup.metrics | cut, table, pairs, prompts)


def build_evaluation(config: RunConfig, folder: Path, screen: Screen) -> EvaluationSetup:
    """Data, reference and scorers; the run's folder is begun."""
    corpus = load_corpus(config.dataset, config.evaluation, config.seed)
    screen.data(corpus)
    require_examples(config, corpus)
    store = Store(Path(config.artifacts_dir), Ledger(folder / "ledger.json", config.resume))
    history = History(folder / "history.csv", config.resume)
    bench = RunContext(config, folder, store, history, corpus, load_tokenizer(config), screen.progress)
    require_context(config)
    engine = engine_of(config, folder)
    base = load_base(bench)
    if not reads_packed(base.model):
        screen.say(f"note: {type(base.model).__name__} cannot read rows of several responses: one response a row, which is slower")
    begin_run(config, folder)  # not before: what is wrong with data or model is put right and started again
    metrics: Metrics = {**corpus.metrics, "data/hash": digest([asdict(pair) for pair in corpus.pairs])}
    reference, identity = base.model, f"base:{base.identity}"
    if "sft" in config.stages:
        with screen.stage("sft") as done:
            reference, artifact = fine_tune(bench, base)
            identity = f"sft:{artifact.key}"
            done(artifact.meta)
        metrics |= artifact.meta | sft_compute(bench).metrics("sft")
    scorers = {}
    for kind in ("reward", "cost"):
        with screen.stage(kind) as done:
            scorers[kind], result = make_scorer(bench, kind, base)
            done(result)
        metrics |= result
    reference = frozen(bench, reference.requires_grad_(False))
    identity += f":{config.model.quantize}" if config.model.quantize else ""
    for model in [reference, *(scorer.model for scorer in scorers.values() if isinstance(scorer, ModelScorer))]:
        bench.offload(model)
    evaluator = PolicyEvaluator(
        reward=scorers["reward"],
        cost=scorers["cost"],
        reference=reference,
        encoder=bench.encoder,
        batch_size=config.trainer.inference_batch,
        sample_batch=config.trainer.sample_batch,
        precision=config.trainer.precision,
        engine=engine,
    )
    return EvaluationSetup(bench, evaluator, reference, identity, metrics)


def engine_of(config: RunConfig, folder: Path) -> VLLM | None:
    """Who samples in the policies' place, if anybody.

    Raises:
        ModelError: it is not installed.
    """
    if config.generation.engine == "torch":
        return None
    return VLLM(folder / "generation", compute_type(config.trainer.precision), config.generation.gpu_memory)


def constants_from(bench: RunContext, evaluator: PolicyEvaluator, identity: str) -> Constants:
    """A function that gives r, c and log pi_ref of texts and their token rows, from the store where it has them."""

    def constants(texts: Sequence[tuple[str, str]], rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
        reward = stored_scores(bench, "reward", evaluator.reward, texts)
        cost = stored_scores(bench, "cost", evaluator.cost, texts)
        return reward, cost, stored_reference_logp(bench, evaluator.reference, identity, rows)

    return constants
