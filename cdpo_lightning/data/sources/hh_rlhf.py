"""Anthropic's hh-rlhf: two whole dialogues per row, of which annotators chose one."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.dialogues import split_dialogues
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.data.source_registry import HARMFUL, PAIR_SOURCES, PairSource


@PAIR_SOURCES.register("hh_harmless")
class HHHarmless(PairSource):
    """hh-rlhf harmless-base: response_0 is chosen and safer. The source `preference` reads helpful-base."""

    notice = f"MIT; {HARMFUL}"

    def records(self, rows: Sequence[SourceRow]) -> list[PreferencePair]:
        """Return one pair per row."""
        return [PreferencePair(*split_dialogues(row), safer=0, row=row.location) for row in rows]
