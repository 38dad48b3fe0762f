"""TruthfulQA: pairs of a true and a false answer for training, and multiple choice for the evaluation."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.columns import label, text, texts, value
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.unusable import UnusableRow
from cdpo_lightning.data.records import MultipleChoice, PreferencePair
from cdpo_lightning.data.source_registry import CHOICE_SOURCES, PAIR_SOURCES, PairSource, Source

_NOTICE = "Apache-2.0; holds falsehoods, some of them offensive"


@PAIR_SOURCES.register("truthfulqa")
class TruthfulQAPairs(PairSource):
    """The CSV file of the paper or the hub's `generation`: one pair per false answer; response_0 is true and better."""

    notice = _NOTICE

    def records(self, rows: Sequence[SourceRow]) -> list[PreferencePair]:
        """Return the pairs; the true answers of a question are used in rotation, the best one first."""
        return [pair for row in rows for pair in _pairs(row)]


@CHOICE_SOURCES.register("truthfulqa")
class TruthfulQAChoices(Source[MultipleChoice]):
    """The JSON file of the paper or the hub's `multiple_choice`."""

    notice = _NOTICE

    def records(self, rows: Sequence[SourceRow]) -> list[MultipleChoice]:
        """Return one question per row.

        Raises:
            DataError: also if not exactly one option of mc1 is true, or none or all options of mc2 are.
        """
        return [_question(row) for row in rows]


def _pairs(row: SourceRow) -> list[PreferencePair]:
    question, best = text(row, "Question", "question"), text(row, "Best Answer", "best_answer").strip()
    true = list(dict.fromkeys([best, *texts(row, "Correct Answers", "correct_answers")]))
    false = texts(row, "Incorrect Answers", "incorrect_answers")
    return [PreferencePair(question, true[i % len(true)], wrong, better=0, row=row.location) for i, wrong in enumerate(false)]


def _question(row: SourceRow) -> MultipleChoice:
    mc1, mc2 = (_options(row, name) for name in ("mc1_targets", "mc2_targets"))
    right = sum(true for _, true in mc1)
    if right != 1:
        raise UnusableRow("bad_options", f"{row.location}: mc1_targets has {right} true options, expected 1; correct it")
    if len({true for _, true in mc2}) != 2:
        message = f"{row.location}: mc2_targets has no true or no false option, expected both; correct it"
        raise UnusableRow("bad_options", message)
    return MultipleChoice(text(row, "question", "Question"), mc1, mc2, row.location)


def _options(row: SourceRow, name: str) -> tuple[tuple[str, bool], ...]:
    """Return (option, whether it is true) from {option: 0 or 1} or {choices: [...], labels: [...]}."""
    options = value(row, name)
    listed = isinstance(options, dict) and options.keys() == {"choices", "labels"}
    if listed and len(options["choices"]) == len(options["labels"]):
        options = dict(zip(options["choices"], options["labels"], strict=True))
    if not isinstance(options, dict):
        message = f"{row.location}: {name} is not an object of options with 0 or 1, or of choices and labels; correct it"
        raise UnusableRow("bad_options", message)
    return tuple((option, label(SourceRow(row.location, options), option)) for option in options)
