"""Preferences between two continuations of a dialogue: hh-rlhf's texts with `Human:` and `Assistant:`, and TRL's turns.

A prompt of several turns becomes one text in the form of hh-rlhf, without the first "Human:" and the last "Assistant:",
which the template adds: `Hi\\n\\nAssistant: Hello\\n\\nHuman: Tea?`.
"""

from os.path import commonprefix
from typing import Any, NamedTuple

from cdpo_lightning.data.reading.columns import text, value
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.errors import DataError

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_SPEAKERS = {"user": _HUMAN, "assistant": _ASSISTANT}


class Preference(NamedTuple):
    """A prompt, and its chosen and rejected response."""

    prompt: str
    chosen: str
    rejected: str


def is_dialogue_pair(row: SourceRow) -> bool:
    """Return whether chosen and rejected are whole dialogues of hh-rlhf, so that there is no column for the prompt."""
    both = [row.columns.get("chosen"), row.columns.get("rejected")]
    return "prompt" not in row.columns and all(isinstance(one, str) and one.startswith(_HUMAN) for one in both)


def split_dialogues(row: SourceRow) -> Preference:
    """Return the shared beginning of two dialogues, up to an assistant's turn, and the continuation of each.

    Where the dialogues diverge early, a continuation contains later turns.

    Raises:
        DataError: not a dialogue, or the two share no beginning.
    """
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    end = commonprefix([chosen, rejected]).rfind(_ASSISTANT)  # noqa: RUF071, character by character is what we want
    if end < 0 or not chosen.startswith(_HUMAN):
        raise DataError(f"{row.location}: no dialogue that starts with {_HUMAN!r} and shares an {_ASSISTANT!r}; correct it")
    start = end + len(_ASSISTANT)
    return Preference(chosen[len(_HUMAN) : end].strip(), chosen[start:].strip(), rejected[start:].strip())


def split_turns(row: SourceRow) -> Preference:
    """Return prompt, chosen and rejected of TRL's columns, each a text or a list of {role, content}.

    The prompt may be a column of its own, the first turns of both responses, or both. The response is the last turn.

    Raises:
        DataError: roles that do not alternate and end with the assistant, or two different prompts, or none.
    """
    chosen, rejected = (_turns(row, name, "assistant") for name in ("chosen", "rejected"))
    prompts = [turns[:-1] for turns in (chosen, rejected) if len(turns) > 1]
    if "prompt" in row.columns or not prompts:
        prompts.append(_turns(row, "prompt", "user"))
    if any(other != prompts[0] for other in prompts):
        raise DataError(f"{row.location}: chosen and rejected answer different prompts, expected one; correct or remove it")
    return Preference(_joined_turns(prompts[0]), chosen[-1][1], rejected[-1][1])


def _turns(row: SourceRow, name: str, last: str) -> list[tuple[str, str]]:
    """Return (role, text) of each turn, checked to alternate and end with role `last`; plain text is one turn of `last`."""
    content: Any = value(row, name)
    if not isinstance(content, list):
        return [(last, text(row, name))]
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in content]
    alternating = [("user", "assistant")[i % 2] for i in range(len(content))]
    if roles[-1:] != [last] or roles not in ([last], alternating):
        raise DataError(
            f"{row.location}: {name} has turns of {roles}, expected user and assistant in turn, {last} last; correct it"
        )
    return [(turn["role"], text(SourceRow(row.location, turn), "content")) for turn in content]


def _joined_turns(turns: list[tuple[str, str]]) -> str:
    """Return the turns of a prompt as one text; a single turn is returned unchanged."""
    if len(turns) == 1:
        return turns[0][1]
    return "".join(f"{_SPEAKERS[role]} {content.strip()}" for role, content in turns).removeprefix(_HUMAN).strip()
