"""Prompts that only the evaluation reads: those with categories, and XSTest's for refusals."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.columns import categories, text
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.records import EvaluationPrompt
from cdpo_lightning.data.source_registry import HARMFUL, PROMPT_SOURCES, Source
from cdpo_lightning.errors import DataError


@PROMPT_SOURCES.register("evaluation_prompts")
class EvaluationPrompts(Source[EvaluationPrompt]):
    """Column prompt (or Question) and, where it exists, category (or Category, type).

    A category is a text, a list of texts or, as in BeaverTails on the hub, {name: label}.
    """

    notice = f"CC BY-NC 4.0 if from BeaverTails, CC BY 4.0 if from XSTest; {HARMFUL}"

    def records(self, rows: Sequence[SourceRow]) -> list[EvaluationPrompt]:
        """Return each prompt once, with the categories of all its rows.

        Raises:
            DataError: also if a prompt is empty, because prompts are not audited.
        """
        by_prompt: dict[str, EvaluationPrompt] = {}
        for row in rows:
            new = EvaluationPrompt(_prompt(row), categories(row, "category", "Category", "type"), row.location)
            old = by_prompt.setdefault(new.prompt, new)
            more = tuple(name for name in new.categories if name not in old.categories)
            by_prompt[new.prompt] = EvaluationPrompt(old.prompt, old.categories + more, old.row)
        return list(by_prompt.values())


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
    prompt = text(row, "prompt", "Question")
    if not prompt.strip():
        raise DataError(f"{row.location}: the prompt is empty, expected text; remove the row")
    return prompt


def _safety(row: SourceRow) -> str:
    if "label" not in row.columns:
        return "unsafe" if text(row, "type").startswith("contrast") else "safe"
    safety = text(row, "label")
    if safety not in ("safe", "unsafe"):
        raise DataError(f"{row.location}: label is {safety[:40]!r}, expected safe or unsafe; correct it")
    return safety
