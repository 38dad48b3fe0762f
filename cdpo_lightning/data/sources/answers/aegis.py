"""Aegis 2.0, also published as Nemotron Content Safety V2: single answers, labelled safe or unsafe."""

from collections.abc import Sequence
from typing import ClassVar

from cdpo_lightning.data.reading.columns import is_null, response_text, text, word_label
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.unusable import UnusableRow
from cdpo_lightning.data.records import EvaluationPrompt, LabelledAnswer
from cdpo_lightning.data.source_registry import (
    HARMFUL,
    LABEL_SOURCES,
    PAIR_SOURCES,
    PROMPT_SOURCES,
    LabelSource,
    PairedAnswers,
    Source,
    merge_prompts,
)

_NOTICE = f"CC BY 4.0; {HARMFUL}"


@LABEL_SOURCES.register("aegis")
class AegisLabels(LabelSource):
    """Columns prompt, response and response_label; about half of the rows have no response, and some prompts are redacted."""

    notice = _NOTICE
    columns = frozenset({"response_label"})

    def record(self, row: SourceRow) -> LabelledAnswer:
        """Return the labelled answer of a row."""
        response = response_text(row)
        safe = word_label(row, "response_label", "safe", "unsafe")
        return LabelledAnswer(_prompt(row), response, safe, row.location)


@PAIR_SOURCES.register("aegis")
class AegisPairs(PairedAnswers):
    """Answers paired by prompt; few prompts have two answers, so that the labels are of more use than the pairs."""

    notice = _NOTICE
    answers: ClassVar[type[LabelSource]] = AegisLabels


@PROMPT_SOURCES.register("aegis")
class AegisPrompts(Source[EvaluationPrompt]):
    """Columns prompt and violated_categories, which names the categories with commas between them."""

    notice = _NOTICE
    columns = frozenset({"violated_categories"})

    def records(self, rows: Sequence[SourceRow]) -> list[EvaluationPrompt]:
        """Return each prompt once, with the categories of all its rows."""
        return merge_prompts(EvaluationPrompt(_prompt(row), _categories(row), row.location) for row in rows)


def _prompt(row: SourceRow) -> str:
    prompt = text(row, "prompt")
    if prompt.strip() == "REDACTED":  # the text is that of another data set, whose licence does not allow to repeat it
        raise UnusableRow(
            "redacted", f"{row.location}: the prompt is REDACTED, expected text; dataset.on_unusable=drop leaves it out"
        )
    return prompt


def _categories(row: SourceRow) -> tuple[str, ...]:
    if is_null(row.columns.get("violated_categories")):
        return ()
    return tuple(dict.fromkeys(part.strip() for part in text(row, "violated_categories").split(",") if part.strip()))
