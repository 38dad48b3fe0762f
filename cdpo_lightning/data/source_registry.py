"""What a data source is, and one registry for each kind of record that sources give.

Take the registries from `cdpo_lightning.data.sources`, which fills them; this module only defines them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from cdpo_lightning.data.audit.audit import audit_pairs
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

    @abstractmethod
    def records(self, rows: Sequence[SourceRow]) -> list[R]:
        """Return the records of the rows.

        Raises:
            DataError: a row lacks a column, or a value has the wrong type.
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


PAIR_SOURCES: Registry[type[PairSource]] = Registry("dataset.pairs_source")
LABEL_SOURCES: Registry[type[Source[LabelledAnswer]]] = Registry("source of labelled answers")
DEMONSTRATION_SOURCES: Registry[type[Source[Demonstration]]] = Registry("source of demonstrations")
PROMPT_SOURCES: Registry[type[Source[EvaluationPrompt]]] = Registry("source of prompts")
CHOICE_SOURCES: Registry[type[Source[MultipleChoice]]] = Registry("source of multiple-choice questions")


def notice_line(registry: Registry[Any], name: str) -> str:
    """Return one line with the name of a source, its licence and the warning about its content.

    Raises:
        ConfigError: the registry has no source of this name.
    """
    return f"{name}: {registry[name].notice}"
