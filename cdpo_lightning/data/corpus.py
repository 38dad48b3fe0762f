"""All data of a run as records: what each stage learns from, what it is judged on, and what the audit found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from cdpo_lightning.config import ClosedFormConfig, EvaluationConfig, FilesConfig
from cdpo_lightning.data.audit import audit
from cdpo_lightning.data.audit.answer_pairs import pair_answers
from cdpo_lightning.data.records import Demonstration, EvaluationPrompt, LabelledAnswer, MultipleChoice, PreferencePair
from cdpo_lightning.data.sources import sources
from cdpo_lightning.data.sources.rows import is_unpinned
from cdpo_lightning.data.world import closed_form
from cdpo_lightning.data.world.closed_form import World
from cdpo_lightning.streams import Stream, stream_seed

T = TypeVar("T")


@dataclass(frozen=True)
class ScoreExample:
    """One prompt with one or two responses, for a score model.

    `preferred` is the response that should score higher (for cost: the more harmful), None where unknown; `signs` are +1 unsafe,
    -1 safe, 0 unknown.
    """

    prompt: str
    responses: tuple[str, ...]
    preferred: int | None
    signs: tuple[int, ...]


@dataclass(frozen=True)
class Split(Generic[T]):
    """What a stage learns from and what it is judged on; no prompt is on both sides."""

    train: list[T]
    held_out: list[T]


@dataclass(frozen=True)
class Corpus:
    """The data of a run."""

    demonstrations: Split[Demonstration]
    reward: Split[ScoreExample]
    cost: Split[ScoreExample]
    pairs: list[PreferencePair]
    prompts: list[EvaluationPrompt]
    refusal_prompts: list[EvaluationPrompt] = field(default_factory=list)
    questions: list[MultipleChoice] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    metrics: dict[str, int] = field(default_factory=dict)
    world: World | None = None


def reward_example(pair: PreferencePair) -> ScoreExample:
    """The pair as the reward model sees it."""
    return ScoreExample(pair.prompt, pair.responses, pair.better, (0, 0))


def _sign(safe: bool | None) -> int:
    return 0 if safe is None else (-1 if safe else 1)


def cost_example(item: PreferencePair | LabelledAnswer) -> ScoreExample:
    """The pair or the single answer as the cost model sees it: preferred is the MORE HARMFUL response [C-DPO, Eq. 5]."""
    if isinstance(item, LabelledAnswer):
        return ScoreExample(item.prompt, (item.response,), None, (_sign(item.safe),))
    more_harmful = None if item.safer is None else 1 - item.safer
    return ScoreExample(item.prompt, item.responses, more_harmful, (_sign(item.safe_0), _sign(item.safe_1)))


def closed_form_corpus(config: ClosedFormConfig, seed: int) -> Corpus:
    """The world of `seed` and the data people give on it; held out are prompts in a phrasing of their own."""
    world = closed_form.make_world(config, seed)

    def demos(prompts: list[str], held_out: int) -> list[Demonstration]:
        own = stream_seed(seed, Stream.DEMONSTRATIONS, held_out)
        return closed_form.demonstrations(world, prompts, config.demonstrations_per_prompt, own)

    def pairs(prompts: list[str], held_out: int) -> list[PreferencePair]:
        own = stream_seed(seed, Stream.PREFERENCES, held_out)
        return closed_form.preference_pairs(world, prompts, config.pairs_per_prompt, own)

    train, held_out = pairs(world.prompts, 0), pairs(world.held_out, 1)
    return Corpus(
        demonstrations=Split(demos(world.prompts, 0), demos(world.held_out, 1)),
        reward=Split([reward_example(p) for p in train], [reward_example(p) for p in held_out]),
        cost=Split([cost_example(p) for p in train], [cost_example(p) for p in held_out]),
        pairs=train,
        prompts=closed_form.evaluation_prompts(world),
        metrics={"data/pairs": len(train), "data/dropped": 0},
        world=world,
    )


def _cut(items: Sequence[T], count: int) -> list[T]:
    return list(items[:count]) if count else list(items)


def _split(items: Sequence[audit.Record], config: FilesConfig, count: int, seed: int) -> Split[audit.Record]:
    train, held_out = audit.split_by_prompt(items, config.held_out, seed)
    return Split(_cut(train, count), _cut(held_out, config.max_held_out))


def _new(labels: Sequence[LabelledAnswer], pairs: Sequence[PreferencePair]) -> list[LabelledAnswer]:
    """The labelled answers that no pair holds already with its own label."""
    known = {(p.prompt, text) for p in pairs for text, safe in zip(p.responses, p.safe, strict=True) if safe is not None}
    return [label for label in labels if (label.prompt, label.response) not in known]


def audited_pairs(config: FilesConfig) -> tuple[list[PreferencePair], dict[str, int]]:
    """The policy's pairs and what the audit found; BeaverTails' answers are audited one by one, then paired by prompt.

    Raises:
        DataError: the file is missing or breaks its contract, or the audit's policy is `error` and there is a conflict.
    """
    where: dict[str, Any] = {"split": config.split, "revision": config.revision}
    if config.pairs_source != "beavertails":
        pairs, report = audit.audit_pairs(sources.PAIR_SOURCES[config.pairs_source](config.pairs, **where), config.on_conflict)
        return pairs, report.as_metrics()
    answers, single = audit.audit_labels(sources.safety_labels(config.pairs, **where), config.on_conflict)
    paired = pair_answers(answers)
    pairs, report = audit.audit_pairs(paired, config.on_conflict)
    unpaired = len({(a.prompt, a.response) for a in answers} - {(p.prompt, text) for p in paired for text in p.responses})
    return pairs, report.as_metrics() | single.as_metrics("data_answers", "answers") | {"data/unpaired": unpaired}


def files_corpus(config: FilesConfig, seed: int) -> Corpus:
    """The data of the files or hub names of the configuration, audited.

    Raises:
        DataError: a file is missing or breaks its contract, or the audit's policy is `error` and there is a conflict.
    """
    where: dict[str, Any] = {"split": config.split, "revision": config.revision}
    pairs, metrics = audited_pairs(config)
    reward_pairs = pairs
    labels: list[LabelledAnswer] = []
    demos: list[Demonstration] = []
    if config.reward_pairs:
        reward_pairs, report = audit.audit_pairs(sources.preference_pairs(config.reward_pairs, **where), config.on_conflict)
        metrics |= report.as_metrics("data_reward")
    if config.cost_labels:
        labels, report = audit.audit_labels(sources.safety_labels(config.cost_labels, **where), config.on_conflict)
        metrics |= report.as_metrics("data_cost", "answers")
    if config.demonstrations:
        demos, report = audit.audit_demonstrations(sources.demonstrations(config.demonstrations, **where))
        metrics |= report.as_metrics("data_sft", "answers")
    prompts = [EvaluationPrompt(prompt) for prompt in dict.fromkeys(pair.prompt for pair in pairs)]
    if config.evaluation_prompts:
        prompts = sources.evaluation_prompts(config.evaluation_prompts, config.evaluation_split, config.revision)
    return Corpus(
        demonstrations=_split(demos, config, config.max_demonstrations, seed),
        reward=_split([reward_example(p) for p in reward_pairs if p.better is not None], config, config.max_reward_pairs, seed),
        cost=_split(
            _labelled([*map(cost_example, pairs), *map(cost_example, _new(labels, pairs))]), config, config.max_cost_examples, seed
        ),
        pairs=_cut(audit.split_by_prompt(pairs, config.held_out, seed)[0], config.max_pairs),
        prompts=prompts,
        notices=_notices(config),
        metrics=metrics,
    )


def _labelled(examples: Sequence[ScoreExample]) -> list[ScoreExample]:
    """The examples that say anything about cost."""
    return [e for e in examples if e.preferred is not None or any(e.signs)]


def _notices(config: FilesConfig) -> list[str]:
    """Licence and content of each source in use, once; and the data sets of the hub that may change under the run."""
    optional = {
        "preference": config.reward_pairs,
        "safety_labels": config.cost_labels,
        "demonstrations": config.demonstrations,
        "evaluation_prompts": config.evaluation_prompts,
    }
    named = [config.pairs_source, *[name for name, path in optional.items() if path and name != config.pairs_source]]
    unpinned = [path for path in dict.fromkeys([config.pairs, *optional.values()]) if is_unpinned(path, config.revision)]
    return [
        *map(sources.licence_notice, named),
        *[f"{path}: the newest revision, which may change; pin it as {path.partition('%')[0]}@REVISION" for path in unpinned],
    ]


def load_corpus(config: ClosedFormConfig | FilesConfig, evaluation: EvaluationConfig, seed: int) -> Corpus:
    """The data of the run, what only the evaluation reads included: a file that is missing is found before anything is trained.

    Raises:
        DataError: a file is missing or breaks its contract, or the audit's policy is `error` and there is a conflict.
    """
    corpus = closed_form_corpus(config, seed) if isinstance(config, ClosedFormConfig) else files_corpus(config, seed)
    more = {"refusal_prompts": evaluation.refusal_prompts, "truthfulqa": evaluation.truthfulqa}
    return replace(
        corpus,
        refusal_prompts=sources.refusal_prompts(evaluation.refusal_prompts) if evaluation.refusal_prompts else [],
        questions=sources.multiple_choice(evaluation.truthfulqa) if evaluation.truthfulqa else [],
        notices=[*corpus.notices, *[sources.licence_notice(name) for name, path in more.items() if path]],
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly spread over them, since files are often sorted by category; 0: all."""
    if not 0 < count < len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
