"""Responses to imitate, for supervised fine-tuning."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.columns import text
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.records import Demonstration
from cdpo_lightning.data.source_registry import DEMONSTRATION_SOURCES, Source


@DEMONSTRATION_SOURCES.register("demonstrations")
class Demonstrations(Source[Demonstration]):
    """Columns prompt and response, or Alpaca's instruction, input (optional) and output."""

    notice = "CC BY-NC 4.0 if from Alpaca, no commercial use; else the licence of your file"

    def records(self, rows: Sequence[SourceRow]) -> list[Demonstration]:
        """Return one demonstration per row."""
        return [_demonstration(row) for row in rows]


def _demonstration(row: SourceRow) -> Demonstration:
    if "instruction" not in row.columns:
        return Demonstration(text(row, "prompt"), text(row, "response"), row.location)
    prompt, context = text(row, "instruction"), text(row, "input") if "input" in row.columns else ""
    return Demonstration(f"{prompt}\n\n{context}" if context.strip() else prompt, text(row, "output"), row.location)
