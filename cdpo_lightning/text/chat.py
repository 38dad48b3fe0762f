"""Conversations in the tokenizer's own chat template: where the response begins, and where the turn ends.

A prompt and its answer are rendered as one conversation, which is divided where the prompt ends. What the template puts in front
of an answer (Qwen3's empty thought, the channel of GPT-OSS) is therefore part of the text that a policy is trained to write.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from cdpo_lightning.errors import ModelError

# Templates that print today's date print this one (Llama 3.1's own default), so that the text does not depend on the day.
_DATE = dt.datetime(2024, 7, 26)
_FORMATS = "".join(f" | replace('{code}', '{_DATE.strftime(code)}')" for code in ("%Y", "%y", "%m", "%B", "%b", "%d", "%A", "%a"))
FIXED_DATE = f"{{% macro strftime_now(format) %}}{{{{ format{_FORMATS} }}}}{{% endmacro %}}\n"

RENDERING = "conversation"  # changed with what is rendered: results that are stored under another name are not used

# Two conversations that are rendered to learn what a template puts around the texts.
_QUESTION, _ANSWER = "Is tea good?", "Yes, very."
_OTHERS = ("Name two!", "Green, and black")
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)  # raised by a template, by its options, for want of a default one
_LONGEST_HEADER = 64  # characters, of which the last may be part of a token that the response begins with


@dataclass(frozen=True)
class Frame:
    """What a chat template puts around an answer, whatever the question and the answer are."""

    dropped: str  # the end of the generation prompt that is no part of a conversation
    before: str  # between the prompt and the answer
    end: str  # behind the answer, to the end of the turn
    after: str  # what a conversation has behind that
    end_id: int  # the last token of `end`
    is_open: bool = False  # the template does not end the turn: `end` comes from `model.stop`


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A tokenizer's chat template with its options (`model.template_options`), and the ids that stop sampling besides its own."""

    tokenizer: Any
    options: Mapping[str, Any]
    stop: tuple[int, ...] = ()  # of `model.stop`; the first ends a turn that the template leaves open
    other_stops: tuple[int, ...] = ()  # of the model's generation_config and the tokenizer's eos

    def prompt(self, question: str) -> str:
        """Return the rendered prompt, up to where the response begins."""
        return self._render(question).removesuffix(self.frame.dropped)

    def conversation(self, question: str, answer: str) -> str:
        """Return the rendering of both turns, as the model cards of score models have it."""
        return self._render(question, answer)

    def conversation_ids(self, question: str, answer: str) -> list[int]:
        """Return the ids of both turns."""
        return self.ids(self.conversation(question, answer))

    def response(self, answer: str, with_end: bool = True) -> str:
        """Return the rendering of an answer, from the end of the prompt to the end of the turn.

        Raises:
            ModelError: the template puts something else around this answer than around others, or leaves a part of it out.
        """
        frame, (prompt, _) = self.frame, self._example_prompt
        whole = self.conversation(_QUESTION, answer.removesuffix(frame.end))
        behind = frame.after if frame.is_open else frame.end + frame.after
        if whole.startswith(prompt) and whole.endswith(behind):
            text = whole[len(prompt) : len(whole) - len(behind)]
        elif not answer.strip():  # some templates leave an empty turn out
            text = frame.before
        else:
            raise refusal(self.tokenizer, f"something else is around the answer {answer[:60]!r} than around others")
        if "".join(answer.removesuffix(frame.end).split()) not in "".join(text.split()):
            raise refusal(self.tokenizer, f"its template leaves out a part of the answer {answer[:60]!r}", "remove that part")
        return text + frame.end if with_end else text

    def response_ids(self, answer: str, with_end: bool = True) -> list[int]:
        """Return the ids of the rendered response: those of the conversation behind those of its prompt.

        An answer whose first characters merge with the prompt's last into one token is encoded by itself, as a model that reads
        the prompt would write it.
        """
        (prompt, first), response = self._example_prompt, self.response(answer, with_end)
        ids = self.ids(prompt + response)
        return ids[len(first) :] if ids[: len(first)] == first else self.ids(response)

    def answer_of(self, response: str) -> str:
        """Return the answer in a response without its last token: without what the template puts around answers."""
        frame = self.frame
        inner = frame.end.removesuffix(self._text(frame.end_id))
        return (response.removesuffix(inner) if inner else response).removeprefix(frame.before)

    def ids(self, text: str) -> list[int]:
        """Return the ids of rendered text; its special tokens are in the text already."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    @cached_property
    def _example_prompt(self) -> tuple[str, list[int]]:
        """A rendered prompt, with which responses are rendered, and its ids."""
        prompt = self.prompt(_QUESTION)
        return prompt, self.ids(prompt)

    def _render(self, question: str, answer: str | None = None) -> str:
        in_parts = self._in_parts
        try:
            return self._apply(question, answer, in_parts)
        except _TEMPLATE_ERRORS as error:
            raise refusal(self.tokenizer, f"its template fails ({error}) on {question[:60]!r}") from error

    def _apply(self, question: str, answer: str | None, in_parts: bool) -> str:
        texts = {"user": question} if answer is None else {"user": question, "assistant": answer}
        turns = [{"role": role, "content": [{"type": "text", "text": t}] if in_parts else t} for role, t in texts.items()]
        source = self.tokenizer.get_chat_template()
        if "strftime_now" in source:
            source = FIXED_DATE + source
        own: dict[str, Any] = {"tokenize": False, "add_generation_prompt": answer is None, "chat_template": source}
        return str(self.tokenizer.apply_chat_template(turns, **own, **self.options))

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the content of a turn is a list of parts, as the templates of vision models have it, and not a text."""
        if not self.tokenizer.chat_template:
            raise refusal(self.tokenizer, "the tokenizer has no chat template")
        missing = ""
        for in_parts in (False, True):
            try:
                prompt, whole = (self._apply(_QUESTION, answer, in_parts) for answer in (None, _ANSWER))
            except _TEMPLATE_ERRORS as error:
                missing = missing or f"its template fails ({error})"
                continue
            if _QUESTION in prompt and _QUESTION in whole and _ANSWER in whole:
                return in_parts
            missing = f"its template leaves out the text of {'the assistant' if _QUESTION in prompt else 'the user'}"
        raise refusal(self.tokenizer, missing, "see model.template_options")

    @cached_property
    def frame(self) -> Frame:
        """What the template puts around an answer.

        Raises:
            ModelError: it depends on the texts, or the turn has no end.
        """
        prompt, whole = self._render(_QUESTION), self.conversation(_QUESTION, _ANSWER)
        shared = self._last_boundary(
            whole, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
        )
        if shared < prompt.rfind(_QUESTION) + len(_QUESTION):
            raise refusal(self.tokenizer, "a conversation begins in another way than its prompt", "see model.template_options")
        before, _, behind = whole[shared:].partition(_ANSWER)
        end = self._end(behind)
        is_open = not end
        if is_open:
            if not self.stop:
                remedy = "name the token that ends it in model.stop"
                raise refusal(self.tokenizer, f"no special token follows an answer, only {behind!r}", remedy)
            end = self.stop[:1]
        text = "".join(map(self._text, end))
        frame = Frame(prompt[shared:], before, text, behind if is_open else behind[len(text) :], end[-1], is_open)
        self._require_same(frame)
        return frame

    def _last_boundary(self, whole: str, length: int) -> int:
        """Return how many of the first `length` characters can be the prompt: their ids are the conversation's first ones."""
        ids = self.ids(whole)
        for end in range(length, max(0, length - _LONGEST_HEADER), -1):
            own = self.ids(whole[:end])
            if ids[: len(own)] == own:
                return end
        return 0

    def _end(self, behind: str) -> tuple[int, ...]:
        """Return the special tokens at the start of the text behind an answer, no more than to the first that stops sampling.

        They may be several: Cohere's `<|END_RESPONSE|>` is followed by the end of the turn.
        """
        special = {*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids}
        end: list[int] = []
        for token in self.ids(behind):
            if token not in special or not behind.startswith("".join(map(self._text, [*end, token]))):
                break
            end.append(token)
            if token in self.stop + self.other_stops:
                break
        return tuple(end)

    def _require_same(self, frame: Frame) -> None:
        """Check that another conversation has the same frame.

        Raises:
            ModelError: it has not.
        """
        prompt = self._render(_OTHERS[0]).removesuffix(frame.dropped)
        expected = prompt + frame.before + _OTHERS[1] + ("" if frame.is_open else frame.end) + frame.after
        if self.conversation(*_OTHERS) != expected:
            raise refusal(self.tokenizer, "what is around an answer depends on the texts")


def refusal(tokenizer: Any, problem: str, remedy: str = "") -> ModelError:
    """Return the error for a tokenizer whose chat template cannot be used."""
    name = tokenizer.name_or_path or type(tokenizer).__name__
    return ModelError(f"{name}: template chat cannot be used: {problem}; {remedy and remedy + ', or '}use beaver or plain")


def longest_end(text: str, fits: Callable[[str], bool]) -> str:
    """Return the longest end of the text that fits, which may be empty, by bisection."""
    if fits(text):
        return text
    low, high = 0, len(text)  # cutting `low` characters does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(text[middle:]) else (middle, high)
    return text[high:]
