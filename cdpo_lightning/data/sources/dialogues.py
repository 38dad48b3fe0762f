"""Preferences between the ends of a dialogue: Anthropic's texts with `Human:` and `Assistant:`, and lists of turns.

A prompt of several turns is one text in Anthropic's form without its first "Human:" and its last "Assistant:", which the
template brings: `Hi\\n\\nAssistant: Hello\\n\\nHuman: Tea?`.
"""

from os.path import commonprefix
from typing import Any

from cdpo_lightning.data.sources.columns import Columns, text, value
from cdpo_lightning.errors import DataError

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_SPEAKERS = {"user": _HUMAN, "assistant": _ASSISTANT}
Ends = tuple[str, str, str]  # prompt, chosen, rejected


def is_hh(row: Columns) -> bool:
    """Whether the row has two whole dialogues as texts, and no prompt of its own."""
    result = [row.get("chosen"), row.get("rejected")]
    return "prompt" not in row and all(isinstance(one, str) and one.startswith(_HUMAN) for one in result)


def hh_ends(location: str, row: Columns) -> Ends:
    """The prompt that both dialogues share, up to an assistant's turn, and how each goes on.

    Where the dialogues part early, an answer holds later turns.

    Raises:
        DataError: no dialogue, or none that both share.
    """
    chosen, rejected = text(location, row, "chosen"), text(location, row, "rejected")
    end = commonprefix([chosen, rejected]).rfind(_ASSISTANT)  # noqa: RUF071, character by character is what we want
    if end < 0 or not chosen.startswith(_HUMAN):
        raise DataError(f"{location}: no dialogue that starts with {_HUMAN!r} and shares an {_ASSISTANT!r}; correct it")
    prompt, *answers = chosen[len(_HUMAN) : end], chosen[end + len(_ASSISTANT) :], rejected[end + len(_ASSISTANT) :]
    return prompt.strip(), answers[0].strip(), answers[1].strip()


def turn_ends(location: str, row: Columns) -> Ends:
    """Prompt, chosen and rejected of TRL's columns, each a text or a list of {role, content}.

    The prompt may stand in its column, before both answers, or both; only the last turn of an answer is the answer.

    Raises:
        DataError: roles that do not take turns and end with the assistant, or two different prompts, or none.
    """
    chosen, rejected = (_turns(location, row, name, "assistant") for name in ("chosen", "rejected"))
    requested = [turns[:-1] for turns in (chosen, rejected) if len(turns) > 1]
    if "prompt" in row or not requested:
        requested.append(_turns(location, row, "prompt", "user"))
    if any(other != requested[0] for other in requested):
        raise DataError(f"{location}: chosen and rejected answer different prompts, expected one; correct or remove it")
    return _written(requested[0]), chosen[-1][1], rejected[-1][1]


def _turns(location: str, row: Columns, name: str, last: str) -> list[tuple[str, str]]:
    """(role, text) of each turn, the roles taking turns up to `last`; a column of plain text is one turn of `last`."""
    result: Any = value(location, row, name)
    if not isinstance(result, list):
        return [(last, text(location, row, name))]
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in result]
    by_turns = [("user", "assistant")[i % 2] for i in range(len(result))]
    if roles[-1:] != [last] or roles not in ([last], by_turns):
        raise DataError(f"{location}: {name} has turns of {roles}, expected user and assistant by turns, {last} last; correct it")
    return [(turn["role"], text(location, turn, "content")) for turn in result]


def _written(turns: list[tuple[str, str]]) -> str:
    """A prompt's turns as one text; a single turn as it is."""
    if len(turns) == 1:
        return turns[0][1]
    return "".join(f"{_SPEAKERS[role]} {message.strip()}" for role, message in turns).removeprefix(_HUMAN).strip()
