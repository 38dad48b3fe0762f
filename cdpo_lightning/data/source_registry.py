"""What a data source is, and one registry for each kind of record that sources give.

Take the registries from `cdpo_lightning.data.sources`, which fills them; this module only defines them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from cdpo_lightning.data.audit.answer_pairs import pair_answers
from cdpo_lightning.data.audit.audit import audit_labels, audit_pairs
from cdpo_lightning.data.reading.rows import SourceRow, read_rows
from cdpo_lightning.data.records import Demonstration, EvaluationPrompt, LabelledAnswer, MultipleChoice, PreferencePair
from cdpo_lightning.registry import Registry

R = TypeVar("R")
HARMFUL = "holds offensive and harmful text"  # for notices


class Source(ABC, Generic[R]):
    """A published data set or a file format: how its rows become records of type R, and its notice.

    Empty texts are let through, because the audit counts them.
    """

    notice: ClassVar[str]  # licence and warning about the content, one line, printed once per run
    columns: ClassVar[frozenset[str]] = frozenset()  # by which files of this source are recognised; a file has all of them

    @abstractmethod
    def records(self, rows: Sequence[SourceRow]) -> list[R]:
        """Return the records of the rows.

        Raises:
            UnusableRow: a row lacks a column, or a value has the wrong type.
        """

    def read(self, path: str, split: str = "train", revision: str | None = None, limit: int | None = None) -> list[R]:
        """Return the records of a file, a folder or a hub data set; the arguments are those of `read_rows`.

        Raises:
            DataError: the path cannot be read, or a row breaks the contract of `records`.
        """
        return self.records(read_rows(path, split, revision, limit))


class PairSource(Source[PreferencePair]):
    """A source of preference pairs. Override `audited` only if the source needs an audit before its rows become pairs."""

    def audited(
        self, rows: Sequence[SourceRow], on_conflict: str, prefix: str = "data"
    ) -> tuple[list[PreferencePair], dict[str, int]]:
        """Return the pairs to train on and the counts of the audit as metrics named `<prefix>/...`.

        Raises:
            DataError: as `records`, or the policy is `error` and there is a contradiction.
        """
        pairs, report = audit_pairs(self.records(rows), on_conflict)
        return pairs, report.as_metrics(prefix)


class LabelSource(Source[LabelledAnswer]):
    """A source of single answers, each with a safety label."""

    @abstractmethod
    def record(self, row: SourceRow) -> LabelledAnswer:
        """Return the labelled answer of a row.

        Raises:
            UnusableRow: the row lacks a column or a label, or a value has the wrong type.
        """

    def records(self, rows: Sequence[SourceRow]) -> list[LabelledAnswer]:
        """Return one labelled answer per row."""
        return [self.record(row) for row in rows]


class PairedAnswers(PairSource):
    """Pairs made of the single answers of another source, paired by prompt; each answer is audited before it is paired."""

    answers: ClassVar[type[LabelSource]]

    def records(self, rows: Sequence[SourceRow]) -> list[PreferencePair]:
        """Return the pairs of all answers, without an audit."""
        return pair_answers(self.answers().records(rows))

    def audited(
        self, rows: Sequence[SourceRow], on_conflict: str, prefix: str = "data"
    ) -> tuple[list[PreferencePair], dict[str, int]]:
        """Return the pairs of the answers that pass the audit, and the counts of both audits as metrics.

        Those of the answers are `<prefix>_answers/...`; `<prefix>/unpaired` counts the answers that are in no pair.
        """
        answers, report_of_answers = audit_labels(self.answers().records(rows), on_conflict)
        paired = pair_answers(answers)
        pairs, report = audit_pairs(paired, on_conflict)
        in_pairs = {(pair.prompt, response) for pair in paired for response in pair.responses}
        unpaired = len({(answer.prompt, answer.response) for answer in answers} - in_pairs)
        metrics = report.as_metrics(prefix) | report_of_answers.as_metrics(f"{prefix}_answers", "answers")
        return pairs, metrics | {f"{prefix}/unpaired": unpaired}


def merge_prompts(prompts: Iterable[EvaluationPrompt]) -> list[EvaluationPrompt]:
    """Return each prompt once, at its first row, with the categories of all its rows."""
    by_prompt: dict[str, EvaluationPrompt] = {}
    for new in prompts:
        old = by_prompt.setdefault(new.prompt, new)
        more = tuple(name for name in new.categories if name not in old.categories)
        by_prompt[new.prompt] = EvaluationPrompt(old.prompt, old.categories + more, old.row)
    return list(by_prompt.values())


PAIR_SOURCES: Registry[type[PairSource]] = Registry("dataset.pairs_source")
LABEL_SOURCES: Registry[type[LabelSource]] = Registry("source of labelled answers")
DEMONSTRATION_SOURCES: Registry[type[Source[Demonstration]]] = Registry("source of demonstrations")
PROMPT_SOURCES: Registry[type[Source[EvaluationPrompt]]] = Registry("source of prompts")
CHOICE_SOURCES: Registry[type[Source[MultipleChoice]]] = Registry("source of multiple-choice questions")


def notice_line(registry: Registry[Any], name: str) -> str:
    """Return one line with the name of a source, its licence and the warning about its content.

    Raises:
        ConfigError: the registry has no source of this name.
    """
    return f"{name}: {registry[name].notice}"


def fitting_source(registry: Registry[Any], default: str, rows: Sequence[SourceRow]) -> str:
    """Return the name of the source whose columns the first recognised row has, `default` where it has those of several or none."""
    by_columns = [(name, registry[name].columns) for name in (default, *registry) if registry[name].columns]
    for row in rows:
        for name, columns in by_columns:
            if columns <= row.columns.keys():
                return name
    return default
