"""PKU-SafeRLHF: two responses to a prompt, with the safety of each, the safer one and the better one."""

from collections.abc import Sequence

from cdpo_lightning.data.reading.columns import label, text
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.data.source_registry import HARMFUL, PAIR_SOURCES, PairSource


@PAIR_SOURCES.register("pku_saferlhf")
class PKUSafeRLHF(PairSource):
    """Every release of PKU-SafeRLHF; `better` only where the column better_response_id exists.

    PKU-SafeRLHF-single-dimension has better_response_id alone. The severities and harm categories of later releases are
    not read.
    """

    notice = f"CC BY-NC 4.0, no commercial use; {HARMFUL}"

    def records(self, rows: Sequence[SourceRow]) -> list[PreferencePair]:
        """Return one pair per row."""
        return [_pair(row) for row in rows]


def _pair(row: SourceRow) -> PreferencePair:
    prompt, response_0, response_1 = (text(row, name) for name in ("prompt", "response_0", "response_1"))
    better = int(label(row, "better_response_id")) if "better_response_id" in row.columns else None
    if better is not None and not {"is_response_0_safe", "is_response_1_safe", "safer_response_id"} & row.columns.keys():
        return PreferencePair(prompt, response_0, response_1, better, row=row.location)
    safe_0, safe_1 = (label(row, f"is_response_{index}_safe") for index in (0, 1))
    safer = int(label(row, "safer_response_id"))
    return PreferencePair(prompt, response_0, response_1, better, safer, safe_0, safe_1, row.location)
