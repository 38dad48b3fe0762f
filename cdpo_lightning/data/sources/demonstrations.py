"""Responses to imitate, for supervised fine-tuning."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.columns import is_null, text
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.turns import answered_prompt
from cdpo_lightning.data.records import Demonstration
from cdpo_lightning.data.source_registry import DEMONSTRATION_SOURCES, Source


@DEMONSTRATION_SOURCES.register("demonstrations")
class Demonstrations(Source[Demonstration]):
    """Columns prompt and response (or completion), messages, or Alpaca's instruction, input (optional) and output.

    Prompt, response and completion are texts or turns. Of messages, the last turn is the response.
    """

    notice = "CC BY-NC 4.0 if from Alpaca, no commercial use; else the licence of your file"

    def records(self, rows: Sequence[SourceRow]) -> list[Demonstration]:
        """Return one demonstration per row."""
        return [_demonstration(row) for row in rows]


def _demonstration(row: SourceRow) -> Demonstration:
    if "instruction" not in row.columns:
        return Demonstration(*answered_prompt(row), row.location)
    prompt, context = text(row, "instruction"), "" if is_null(row.columns.get("input")) else text(row, "input")
    return Demonstration(f"{prompt}\n\n{context}" if context.strip() else prompt, text(row, "output"), row.location)
