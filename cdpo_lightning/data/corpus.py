"""All data of a run as records: what each stage is trained on, what it is tested on, and the counts of the audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from cdpo_lightning.config import ClosedFormConfig, EvaluationConfig, FilesConfig
from cdpo_lightning.data.audit import audit
from cdpo_lightning.data.file_reader import FileReader
from cdpo_lightning.data.records import Demonstration, EvaluationPrompt, LabelledAnswer, MultipleChoice, PreferencePair
from cdpo_lightning.data.sources import CHOICE_SOURCES, DEMONSTRATION_SOURCES, LABEL_SOURCES, PAIR_SOURCES, PROMPT_SOURCES
from cdpo_lightning.data.world import closed_form
from cdpo_lightning.data.world.closed_form import World
from cdpo_lightning.streams import Stream, stream_seed

T = TypeVar("T")


@dataclass(frozen=True)
class ScoreExample:
    """One prompt with one or two responses, for a score model.

    `preferred` is the response that should have the higher score (for cost: the more harmful one), None if unknown;
    `signs` has +1 for unsafe, -1 for safe and 0 for unknown, one per response.
    """

    prompt: str
    responses: tuple[str, ...]
    preferred: int | None
    signs: tuple[int, ...]


@dataclass(frozen=True)
class Split(Generic[T]):
    """The training and the held-out records of a stage; no prompt is on both sides."""

    train: list[T]
    held_out: list[T]


@dataclass(frozen=True)
class Corpus:
    """The data of a run."""

    demonstrations: Split[Demonstration]
    reward: Split[ScoreExample]
    cost: Split[ScoreExample]
    pairs: list[PreferencePair]  # of the policy stage
    prompts: list[EvaluationPrompt]
    refusal_prompts: list[EvaluationPrompt] = field(default_factory=list)
    questions: list[MultipleChoice] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)  # one line each, to print once
    metrics: dict[str, int] = field(default_factory=dict)  # the counts of the audit
    world: World | None = None  # None unless `dataset=closed_form`


def reward_example(pair: PreferencePair) -> ScoreExample:
    """Return the example that the reward model learns from the pair."""
    return ScoreExample(pair.prompt, pair.responses, pair.better, (0, 0))


def cost_example(item: PreferencePair | LabelledAnswer) -> ScoreExample:
    """Return the example that the cost model learns; its preferred response is the MORE HARMFUL one [C-DPO, Eq. 5]."""
    if isinstance(item, LabelledAnswer):
        return ScoreExample(item.prompt, (item.response,), None, (_sign(item.safe),))
    more_harmful = None if item.safer is None else 1 - item.safer
    return ScoreExample(item.prompt, item.responses, more_harmful, (_sign(item.safe_0), _sign(item.safe_1)))


def _sign(safe: bool | None) -> int:
    return 0 if safe is None else (-1 if safe else 1)


def load_corpus(config: ClosedFormConfig | FilesConfig, evaluation: EvaluationConfig, seed: int) -> Corpus:
    """Return all data of the run, including what only the evaluation reads, so that a missing file stops it before any training.

    Raises:
        ConfigError: `dataset.pairs_source` is unknown; no file has been read then.
        DataError: a file is missing or breaks its contract, or the audit's policy is `error` and there is a contradiction.
    """
    reader = FileReader()
    if isinstance(config, ClosedFormConfig):
        corpus = closed_form_corpus(config, seed)
    else:
        reader = FileReader(config.on_unusable, config.columns, config.revision)
        corpus = files_corpus(config, seed, reader)
    refusal_prompts, questions = list[EvaluationPrompt](), list[MultipleChoice]()
    if evaluation.refusal_prompts:
        refusal_prompts = reader.published(evaluation.refusal_prompts, PROMPT_SOURCES, "refusal_prompts")
    if evaluation.truthfulqa:
        questions = reader.published(evaluation.truthfulqa, CHOICE_SOURCES, "truthfulqa")
    metrics = corpus.metrics | reader.metrics
    return replace(corpus, refusal_prompts=refusal_prompts, questions=questions, notices=reader.notices, metrics=metrics)


def closed_form_corpus(config: ClosedFormConfig, seed: int) -> Corpus:
    """Return the world of `seed` and data sampled from it; the held-out prompts have a phrasing of their own."""
    world = closed_form.make_world(config, seed)

    def demonstrations(prompts: list[str], held_out: int) -> list[Demonstration]:
        own_seed = stream_seed(seed, Stream.DEMONSTRATIONS, held_out)
        return closed_form.demonstrations(world, prompts, config.demonstrations_per_prompt, own_seed)

    def pairs(prompts: list[str], held_out: int) -> list[PreferencePair]:
        own_seed = stream_seed(seed, Stream.PREFERENCES, held_out)
        return closed_form.preference_pairs(world, prompts, config.pairs_per_prompt, own_seed)

    train, held_out = pairs(world.prompts, 0), pairs(world.held_out, 1)
    return Corpus(
        demonstrations=Split(demonstrations(world.prompts, 0), demonstrations(world.held_out, 1)),
        reward=Split([reward_example(p) for p in train], [reward_example(p) for p in held_out]),
        cost=Split([cost_example(p) for p in train], [cost_example(p) for p in held_out]),
        pairs=train,
        prompts=closed_form.evaluation_prompts(world),
        metrics={"data/pairs": len(train), "data/dropped": 0},
        world=world,
    )


def files_corpus(config: FilesConfig, seed: int, reader: FileReader) -> Corpus:
    """Return the audited data of the files or hub names of the configuration.

    Raises:
        ConfigError: `dataset.pairs_source` is unknown (no file has been read then), or no file has a column of `dataset.columns`.
        DataError: a file is missing or breaks its contract, or the audit's policy is `error` and there is a contradiction.
    """
    source, rows = reader.read(config.pairs, PAIR_SOURCES, config.pairs_source, config.split, fixed=True)
    pairs, metrics = source.audited(rows, config.on_conflict)
    reward_pairs = pairs
    labels: list[LabelledAnswer] = []
    demonstrations: list[Demonstration] = []
    if config.reward_pairs:
        source, rows = reader.read(config.reward_pairs, PAIR_SOURCES, "preference", config.split)
        reward_pairs, counts = source.audited(rows, config.on_conflict, "data_reward")
        metrics |= counts
    if config.cost_labels:
        label_source, rows = reader.read(config.cost_labels, LABEL_SOURCES, "safety_labels", config.split)
        labels, report = audit.audit_labels(label_source.records(rows), config.on_conflict)
        metrics |= report.as_metrics("data_cost", "answers")
    if config.demonstrations:
        demonstration_source, rows = reader.read(config.demonstrations, DEMONSTRATION_SOURCES, "demonstrations", config.split)
        demonstrations, report = audit.audit_demonstrations(demonstration_source.records(rows))
        metrics |= report.as_metrics("data_sft", "answers")
    rewards = [reward_example(pair) for pair in reward_pairs if pair.better is not None]
    prompts = _evaluation_prompts(config, pairs, reader)
    reader.require_columns()
    return Corpus(
        demonstrations=_split(demonstrations, config, config.max_demonstrations, seed),
        reward=_split(rewards, config, config.max_reward_pairs, seed),
        cost=_split(_cost_examples(pairs, labels), config, config.max_cost_examples, seed),
        pairs=_first(audit.split_by_prompt(pairs, config.held_out, seed)[0], config.max_pairs),
        prompts=prompts,
        metrics=metrics,
    )


def _first(items: Sequence[T], count: int) -> list[T]:
    """Return the first `count` items; 0: all."""
    return list(items[:count]) if count else list(items)


def _split(items: Sequence[audit.Record], config: FilesConfig, count: int, seed: int) -> Split[audit.Record]:
    train, held_out = audit.split_by_prompt(items, config.held_out, seed)
    return Split(_first(train, count), _first(held_out, config.max_held_out))


def _cost_examples(pairs: Sequence[PreferencePair], labels: Sequence[LabelledAnswer]) -> list[ScoreExample]:
    """Return an example per pair, and per labelled answer that no pair contains with a safety label; only those with a label."""
    known = {(p.prompt, text) for p in pairs for text, safe in zip(p.responses, p.safe, strict=True) if safe is not None}
    new = [label for label in labels if (label.prompt, label.response) not in known]
    examples = [*map(cost_example, pairs), *map(cost_example, new)]
    return [example for example in examples if example.preferred is not None or any(example.signs)]


def _evaluation_prompts(config: FilesConfig, pairs: Sequence[PreferencePair], reader: FileReader) -> list[EvaluationPrompt]:
    """Return the prompts of their own file, or else the prompts of the pairs, each once."""
    if not config.evaluation_prompts:
        return [EvaluationPrompt(prompt) for prompt in dict.fromkeys(pair.prompt for pair in pairs)]
    source, rows = reader.read(config.evaluation_prompts, PROMPT_SOURCES, "evaluation_prompts", config.evaluation_split)
    return source.records(rows)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items at equal distances, because files are often sorted by category; 0: all."""
    if not 0 < count < len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
