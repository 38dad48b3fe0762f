"""WildGuardMix: single answers, labelled harmful or unharmful; about half of the rows are prompts without an answer."""

from typing import ClassVar

from cdpo_lightning.data.reading.columns import response_text, text, word_label
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.records import LabelledAnswer
from cdpo_lightning.data.source_registry import HARMFUL, LABEL_SOURCES, PAIR_SOURCES, LabelSource, PairedAnswers

_NOTICE = f"ODC-BY, with the terms of AI2's gated release; {HARMFUL}"


@LABEL_SOURCES.register("wildguardmix")
class WildGuardLabels(LabelSource):
    """Columns prompt, response and response_harm_label. Refusal labels and the labels of prompts are not read."""

    notice = _NOTICE
    columns = frozenset({"response_harm_label"})

    def record(self, row: SourceRow) -> LabelledAnswer:
        """Return the labelled answer of a row."""
        response = response_text(row)
        harmful = word_label(row, "response_harm_label", "harmful", "unharmful")
        return LabelledAnswer(text(row, "prompt"), response, not harmful, row.location)


@PAIR_SOURCES.register("wildguardmix")
class WildGuardPairs(PairedAnswers):
    """Answers paired by prompt: most prompts with an answer have one that refuses and one that complies."""

    notice = _NOTICE
    answers: ClassVar[type[LabelSource]] = WildGuardLabels
