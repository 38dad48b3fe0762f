"""Preferences in the columns of TRL: prompt, chosen, rejected."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.dialogues import is_dialogue_pair, split_dialogues
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.turns import split_pair
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.data.source_registry import PAIR_SOURCES, PairSource


@PAIR_SOURCES.register("preference")
class Preference(PairSource):
    """TRL's prompt, chosen, rejected as text or as turns; response_0 is chosen and better.

    Turns are lists of {role, content}; the prompt may be a column of its own, the first turns of both responses, or both.
    Whole dialogues without a prompt, as in hh-rlhf helpful-base, are split as those of `hh_harmless`.
    """

    notice = "the licence is that of your file; check it before you publish a model"
    columns = frozenset({"chosen", "rejected"})

    def records(self, rows: Sequence[SourceRow]) -> list[PreferencePair]:
        """Return one pair per row."""
        return [PreferencePair(*_split(row), better=0, row=row.location) for row in rows]


def _split(row: SourceRow) -> tuple[str, str, str]:
    return split_dialogues(row) if is_dialogue_pair(row) else split_pair(row, "chosen", "rejected")
