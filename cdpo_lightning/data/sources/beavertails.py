"""BeaverTails and PKU-SafeRLHF-QA: single answers with a safety label; for the policy they are paired by prompt."""

from collections.abc import Sequence

from cdpo_lightning.data.audit.answer_pairs import pair_answers
from cdpo_lightning.data.audit.audit import audit_labels, audit_pairs
from cdpo_lightning.data.reading.columns import label, text
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.records import LabelledAnswer, PreferencePair
from cdpo_lightning.data.source_registry import HARMFUL, LABEL_SOURCES, PAIR_SOURCES, PairSource, Source


@LABEL_SOURCES.register("safety_labels")
class SafetyLabels(Source[LabelledAnswer]):
    """Single answers: columns prompt, response and is_safe."""

    notice = f"CC BY-NC 4.0 if from PKU-SafeRLHF or BeaverTails, no commercial use; {HARMFUL}"

    def records(self, rows: Sequence[SourceRow]) -> list[LabelledAnswer]:
        """Return one labelled answer per row."""
        return [LabelledAnswer(text(row, "prompt"), text(row, "response"), label(row, "is_safe"), row.location) for row in rows]


@PAIR_SOURCES.register("beavertails")
class BeaverTails(PairSource):
    """Single answers paired by prompt; each answer is audited before it is paired."""

    notice = f"CC BY-NC 4.0, no commercial use; {HARMFUL}"

    def records(self, rows: Sequence[SourceRow]) -> list[PreferencePair]:
        """Return the pairs of all answers, without an audit."""
        return pair_answers(SafetyLabels().records(rows))

    def audited(
        self, rows: Sequence[SourceRow], on_conflict: str, prefix: str = "data"
    ) -> tuple[list[PreferencePair], dict[str, int]]:
        """Return the pairs of the answers that pass the audit, and the counts of both audits as metrics.

        Those of the answers are `<prefix>_answers/...`; `<prefix>/unpaired` counts the answers that are in no pair.
        """
        answers, report_of_answers = audit_labels(SafetyLabels().records(rows), on_conflict)
        paired = pair_answers(answers)
        pairs, report = audit_pairs(paired, on_conflict)
        in_pairs = {(pair.prompt, response) for pair in paired for response in pair.responses}
        unpaired = len({(answer.prompt, answer.response) for answer in answers} - in_pairs)
        metrics = report.as_metrics(prefix) | report_of_answers.as_metrics(f"{prefix}_answers", "answers")
        return pairs, metrics | {f"{prefix}/unpaired": unpaired}
