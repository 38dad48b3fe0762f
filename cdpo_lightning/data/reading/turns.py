r"""Conversations: a prompt and its responses as texts, as lists of {role, content}, or as such lists written out as text.

A prompt of several turns becomes one text in the form of hh-rlhf, without the first "Human:" and the last "Assistant:",
which the template adds: `Hi\n\nAssistant: Hello\n\nHuman: Tea?`.
"""

import ast
import json
import re
import warnings
from typing import Any

from cdpo_lightning.data.reading.columns import checked_text, value
from cdpo_lightning.data.reading.rows import SourceRow
from cdpo_lightning.data.reading.unusable import UnusableRow

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_SPEAKERS = {"user": HUMAN, "assistant": ASSISTANT}
_WRITTEN_TURNS = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")
_NUMPY_BREAK = re.compile(r"\}\s*\n\s*\{")  # numpy prints no comma there; inside a text, repr writes a line feed as \n

Turn = tuple[str, str]  # role, text


def split_pair(row: SourceRow, first: str, second: str) -> tuple[str, str, str]:
    """Return the prompt and the responses in two columns, as `split_turns` does."""
    prompt, (response_0, response_1) = split_turns(row, first, second)
    return prompt, response_0, response_1


def split_turns(row: SourceRow, *columns: str) -> tuple[str, list[str]]:
    """Return the prompt, and the response in each of the columns.

    The prompt may be a column of its own, the first turns of all the responses, or both. A response is the last turn.

    Raises:
        UnusableRow: roles that do not alternate and end with the assistant, or two different prompts, or none.
    """
    answers = [turns(row, name, "assistant") for name in columns]
    prompts = [answer[:-1] for answer in answers if len(answer) > 1]
    if "prompt" in row.columns or not prompts:
        prompts.append(turns(row, "prompt", "user"))
    if any(other != prompts[0] for other in prompts):
        message = f"{row.location}: {' and '.join(columns)} answer different prompts, expected one; correct or remove it"
        raise UnusableRow("two_prompts", message)
    return joined_turns(prompts[0]), [answer[-1][1] for answer in answers]


def split_messages(row: SourceRow, name: str = "messages") -> tuple[str, str]:
    """Return a conversation's prompt, which is everything before the last turn, and its response, the last turn, the assistant's.

    Raises:
        UnusableRow: roles that do not alternate from user to assistant, or a single turn.
    """
    conversation = turns(row, name, "assistant")
    if len(conversation) < 2:
        message = f"{row.location}: {name} has one turn, expected user and assistant; correct or remove it"
        raise UnusableRow("bad_turns", message)
    return joined_turns(conversation[:-1]), conversation[-1][1]


def answered_prompt(row: SourceRow) -> tuple[str, str]:
    """Return the prompt and the response of one answer: `messages`, or `prompt` with `response` or `completion`.

    Raises:
        UnusableRow: the columns are missing, or the turns in them cannot be used.
    """
    if "messages" in row.columns:
        return split_messages(row)
    prompt, [response] = split_turns(row, "completion" if "completion" in row.columns else "response")
    return prompt, response


def prompt_text(row: SourceRow, *names: str) -> str:
    """Return the prompt in the first of the columns that exists, a text or turns of which the user's is the last.

    Raises:
        UnusableRow: there is no such column, roles do not alternate, or the assistant's turn is the last.
    """
    name = next((name for name in names if name in row.columns), None)
    return joined_turns(turns(row, name, "user")) if name else str(value(row, *names))


def conversation_prompt(row: SourceRow, *names: str) -> str:
    """Return the prompt as `prompt_text` does; of turns that end with a response, what comes before it."""
    name = next((name for name in names if name in row.columns), names[0])
    content = _read_out(row, name, row.columns.get(name))
    answered = (
        isinstance(content, list) and bool(content) and isinstance(content[-1], dict) and content[-1].get("role") == "assistant"
    )
    return split_messages(row, name)[0] if answered else prompt_text(row, *names)


def turns(row: SourceRow, name: str, last: str) -> list[Turn]:
    """Return the turns in a column, checked to alternate and end with role `last`; plain text is one turn of `last`.

    Raises:
        UnusableRow: there is no such column, or roles or contents are wrong.
    """
    content = _read_out(row, name, value(row, name))
    if not isinstance(content, list):
        return [(last, checked_text(row, name, content))]
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in content]
    alternating = [("user", "assistant")[i % 2] for i in range(len(content))]
    if roles[-1:] != [last] or roles not in ([last], alternating):
        expected = f"expected user and assistant in turn, {last} last"
        raise UnusableRow("bad_turns", f"{row.location}: {name} has turns of {roles}, {expected}; correct it")
    return [(turn["role"], checked_text(row, "content", value(SourceRow(row.location, turn), "content"))) for turn in content]


def joined_turns(conversation: list[Turn]) -> str:
    """Return the turns of a prompt as one text; a single turn is returned unchanged."""
    if len(conversation) == 1:
        return conversation[0][1]
    return "".join(f"{_SPEAKERS[role]} {content.strip()}" for role, content in conversation).removeprefix(HUMAN).strip()


def _read_out(row: SourceRow, name: str, content: Any) -> Any:
    """Return turns that are written out as text, as in a CSV file, as a list; other content unchanged.

    They may be JSON, or what Python or numpy prints. Text that begins like turns but cannot be read is refused, because a model
    would be trained on its brackets and quotes.
    """
    if not isinstance(content, str) or not _WRITTEN_TURNS.match(content):
        return content
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass  # then it is no JSON, but may be Python's repr
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)  # an escape that repr does not write, such as \d
            return ast.literal_eval(_NUMPY_BREAK.sub("}, {", content.strip()))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        expected = "expected a list of {role, content} as JSON or as Python writes it"
        message = f"{row.location}: {name} looks like turns but cannot be read ({str(error)[:60]}), {expected}; correct it"
        raise UnusableRow("written_turns", message) from error
