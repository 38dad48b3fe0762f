"""HelpSteer3-Preference: two responses to a conversation, and how much better the second is."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.columns import text, value
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.turns import prompt_text
from cdpo_lightning.data.reading.unusable import UnusableRow
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.data.source_registry import PAIR_SOURCES, PairSource


@PAIR_SOURCES.register("helpsteer3")
class HelpSteer3(PairSource):
    """Columns context (turns), response1, response2 and overall_preference, from -3 (response1 is much better) to 3.

    The sign gives `better`; a pair with 0 has no label. The strength is not used.
    """

    notice = "CC BY 4.0; the sign of the preference is used, its strength is not"
    columns = frozenset({"context", "response1", "response2", "overall_preference"})

    def records(self, rows: Sequence[SourceRow]) -> list[PreferencePair]:
        """Return one pair per row."""
        return [_pair(row) for row in rows]


def _pair(row: SourceRow) -> PreferencePair:
    preference = _preference(row)
    better = None if preference == 0 else int(preference > 0)
    return PreferencePair(
        prompt_text(row, "context"), text(row, "response1"), text(row, "response2"), better=better, row=row.location
    )


def _preference(row: SourceRow) -> int:
    content = value(row, "overall_preference")
    preference = _PREFERENCES.get(str(content).strip().removesuffix(".0"))
    if preference is None:
        message = f"{row.location}: overall_preference is {str(content)[:40]!r}, expected -3 to 3; correct the label"
        raise UnusableRow("bad_label", message)
    return preference


_PREFERENCES = {str(number): number for number in range(-3, 4)}
