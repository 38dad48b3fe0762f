"""Prompts that only the evaluation reads: those with categories, and XSTest's for refusals."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.columns import categories, text
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.turns import conversation_prompt
from cdpo_lightning.data.reading.unusable import UnusableRow
from cdpo_lightning.data.records import EvaluationPrompt
from cdpo_lightning.data.source_registry import HARMFUL, PROMPT_SOURCES, Source, merge_prompts


@PROMPT_SOURCES.register("evaluation_prompts")
class EvaluationPrompts(Source[EvaluationPrompt]):
    """Column prompt (or Question) and, where it exists, category (or Category, type, subcategory).

    A prompt is a text, or turns of which the user's is the last; of messages that end with a response, it is what comes before.
    A category is a text, a list of texts or, as in BeaverTails on the hub, {name: label}. A pair of PKU-SafeRLHF has the harm
    categories of both responses.
    """

    notice = f"CC BY-NC 4.0 if from BeaverTails, CC BY 4.0 if from XSTest; {HARMFUL}"
    columns = frozenset({"prompt", "category"})

    def records(self, rows: Sequence[SourceRow]) -> list[EvaluationPrompt]:
        """Return each prompt once, with the categories of all its rows.

        Raises:
            DataError: also if a prompt is empty, because prompts are not audited.
        """
        return merge_prompts(EvaluationPrompt(_prompt(row), _categories(row), row.location) for row in rows)


@PROMPT_SOURCES.register("refusal_prompts")
class RefusalPrompts(Source[EvaluationPrompt]):
    """XSTest: each prompt has the one category `safe` (to be answered) or `unsafe` (a contrast, to be refused)."""

    notice = f"CC BY 4.0 if from XSTest; {HARMFUL}"

    def records(self, rows: Sequence[SourceRow]) -> list[EvaluationPrompt]:
        """Return one prompt per row. Without a column label, a type that begins with `contrast` is unsafe.

        Raises:
            DataError: also if a prompt is empty, or a label is neither safe nor unsafe.
        """
        return [EvaluationPrompt(_prompt(row), (_safety(row),), row.location) for row in rows]


def _prompt(row: SourceRow) -> str:
    prompt = conversation_prompt(row, "prompt", "Question", "messages")
    if not prompt.strip():
        raise UnusableRow("empty", f"{row.location}: the prompt is empty, expected text; remove the row")
    return prompt


def _categories(row: SourceRow) -> tuple[str, ...]:
    names = [f"response_{index}_harm_category" for index in (0, 1) if f"response_{index}_harm_category" in row.columns]
    if names:
        return tuple(dict.fromkeys(category for name in names for category in categories(row, name)))
    return categories(row, "category", "Category", "type", "subcategory")


def _safety(row: SourceRow) -> str:
    if "label" not in row.columns:
        return "unsafe" if text(row, "type").startswith("contrast") else "safe"
    safety = text(row, "label")
    if safety not in ("safe", "unsafe"):
        raise UnusableRow("bad_label", f"{row.location}: label is {safety[:40]!r}, expected safe or unsafe; correct it")
    return safety
