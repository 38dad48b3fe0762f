"""BeaverTails and PKU-SafeRLHF-QA: single answers with a safety label; for the policy they are paired by prompt."""

from typing import ClassVar

from cdpo_lightning.data.reading.columns import is_null, label, value
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.turns import answered_prompt
from cdpo_lightning.data.reading.unusable import UnusableRow
from cdpo_lightning.data.records import LabelledAnswer
from cdpo_lightning.data.source_registry import HARMFUL, LABEL_SOURCES, PAIR_SOURCES, LabelSource, PairedAnswers


@LABEL_SOURCES.register("safety_labels")
class SafetyLabels(LabelSource):
    """Single answers: columns prompt and response (or completion), or messages; and is_safe."""

    notice = f"CC BY-NC 4.0 if from PKU-SafeRLHF or BeaverTails, no commercial use; {HARMFUL}"
    columns = frozenset({"is_safe"})

    def record(self, row: SourceRow) -> LabelledAnswer:
        """Return the labelled answer of a row."""
        prompt, response = answered_prompt(row)
        if is_null(value(row, "is_safe")):
            raise UnusableRow("no_label", f"{row.location}: is_safe is null, expected safe or unsafe, 0 or 1; remove the row")
        return LabelledAnswer(prompt, response, label(row, "is_safe"), row.location)


@PAIR_SOURCES.register("beavertails")
class BeaverTails(PairedAnswers):
    """Single answers paired by prompt; each answer is audited before it is paired."""

    notice = f"CC BY-NC 4.0, no commercial use; {HARMFUL}"
    answers: ClassVar[type[LabelSource]] = SafetyLabels
