"""PKU-SafeRLHF: two responses to a prompt, with the safety of each, the safer one and the better one."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.columns import optional_index, optional_label, value
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.turns import split_pair
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.data.source_registry import HARMFUL, PAIR_SOURCES, PairSource


@PAIR_SOURCES.register("pku_saferlhf")
class PKUSafeRLHF(PairSource):
    """Every release of PKU-SafeRLHF, and files of your own with its columns; prompt and responses are texts or turns.

    A label that is null is no label. `better` is given where the column better_response_id exists, the labels of safety where
    one of their columns does: a file may have no label at all, or better_response_id alone, as PKU-SafeRLHF-single-dimension has.
    The severities and harm categories of later releases are not read here; the evaluation prompts have the harm categories.
    """

    notice = f"CC BY-NC 4.0 if from PKU-SafeRLHF, no commercial use; {HARMFUL}"
    columns = frozenset({"response_0", "response_1", "better_response_id"})

    def records(self, rows: Sequence[SourceRow]) -> list[PreferencePair]:
        """Return one pair per row."""
        return [_pair(row) for row in rows]


_SAFETY = ("is_response_0_safe", "is_response_1_safe", "safer_response_id")


def _pair(row: SourceRow) -> PreferencePair:
    prompt, response_0, response_1 = split_pair(row, "response_0", "response_1")
    better = optional_index(row, "better_response_id")
    if not any(name in row.columns for name in _SAFETY):
        return PreferencePair(prompt, response_0, response_1, better, row=row.location)
    for name in _SAFETY:
        value(row, name)  # one column without the others is a misspelt name
    safe_0, safe_1 = (optional_label(row, name) for name in _SAFETY[:2])
    return PreferencePair(prompt, response_0, response_1, better, optional_index(row, _SAFETY[2]), safe_0, safe_1, row.location)
