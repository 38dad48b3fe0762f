"""Preferences in the form of hh-rlhf: two whole dialogues as text with `Human:` and `Assistant:`."""

from os.path import commonprefix

from cdpo_lightning.data.reading.columns import text
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.turns import ASSISTANT, HUMAN
from cdpo_lightning.data.reading.unusable import UnusableRow


def is_dialogue_pair(row: SourceRow) -> bool:
    """Return whether chosen and rejected are whole dialogues of hh-rlhf, so that there is no column for the prompt."""
    both = [row.columns.get("chosen"), row.columns.get("rejected")]
    return "prompt" not in row.columns and all(isinstance(one, str) and one.startswith(HUMAN) for one in both)


def split_dialogues(row: SourceRow) -> tuple[str, str, str]:
    """Return the shared beginning of two dialogues, up to an assistant's turn, and the continuation of chosen and of rejected.

    Where the dialogues diverge early, a continuation contains later turns.

    Raises:
        UnusableRow: not a dialogue, or the two share no beginning.
    """
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    end = commonprefix([chosen, rejected]).rfind(ASSISTANT)  # noqa: RUF071, character by character is what we want
    if end < 0 or not chosen.startswith(HUMAN):
        message = f"{row.location}: no dialogue that starts with {HUMAN!r} and shares an {ASSISTANT!r}; correct it"
        raise UnusableRow("no_dialogue", message)
    start = end + len(ASSISTANT)
    return chosen[len(HUMAN) : end].strip(), chosen[start:].strip(), rejected[start:].strip()
