"""Prompts and responses as token ids, and how they are truncated.

In the templates `plain` and `beaver`, a policy's prompt and response are tokenized separately, so that a response always starts
where the prompt's ids end. Published scorers instead read both tokenized as one text, which with a SentencePiece vocabulary does
not give the same ids (`encode_scored`). The template `chat` is the tokenizer's own (`text.chat`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from cdpo_lightning.errors import ConfigError, ModelError
from cdpo_lightning.text.chat import ChatTemplate, longest_end

_TEXTS = {"beaver": "BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:", "plain": "{prompt}\n"}
TEMPLATES = ("chat", *_TEXTS)


def render_prompt(prompt: str, template: str) -> str:
    """Return the prompt in a template: `beaver` (that of Safe RLHF) or `plain` (one line).

    The beaver template ends without a space, because one more token there changes the scores of published models.

    Raises:
        ConfigError: the template is unknown.
    """
    if template not in _TEXTS:
        raise ConfigError(f"template: got {template!r}, expected one of {', '.join(TEMPLATES)}; choose one")
    return _TEXTS[template].format(prompt=prompt)


def encode_prompt(prompt: str, template: str, tokenizer: Any) -> list[int]:
    """Return the ids of the prompt in `plain` or `beaver`, with one bos if the tokenizer adds one, and without an eos."""
    return _with_bos(_encode(render_prompt(prompt, template), tokenizer), tokenizer)


def encode_response(response: str, tokenizer: Any, with_eos: bool = True) -> list[int]:
    """Return the ids of the response, without special tokens at the start, and with one eos at the end.

    Raises:
        ModelError: `with_eos` is true and the tokenizer has no eos.
    """
    return _with_eos(_encode(response, tokenizer), tokenizer) if with_eos else _encode(response, tokenizer)


def encode_scored(
    prompt: str, response: str, template: str, tokenizer: Any, max_tokens: int, options: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the ids that a scorer reads: prompt and response as one text, with one bos and the eos whose state is scored.

    With the template `chat` it is the tokenizer's rendering of both turns, with `options` as the template's own, as the cards of
    score models have it. Of a longer text the prompt loses its beginning, and then the text. With the template `pair`, the
    tokenizer encodes two texts with its own special tokens, and truncates the longer one at the end.

    Raises:
        ModelError: the tokenizer has no eos, or no chat template.
    """
    if template == "pair":
        return list(tokenizer(prompt, response, truncation="longest_first", max_length=max_tokens)["input_ids"])
    if template == "chat":
        chat = _chat_of_scorer(tokenizer, json.dumps(options or {}, sort_keys=True), str(tokenizer.chat_template))
        kept = longest_end(prompt, lambda text: len(chat.conversation_ids(text, response)) <= max_tokens)
        return chat.conversation_ids(kept, response)[-max_tokens:]
    ids = _encode(render_prompt(prompt, template) + response, tokenizer)
    return _with_eos(_with_bos(ids, tokenizer), tokenizer)[-max_tokens:]


@lru_cache(maxsize=8)
def _chat_of_scorer(tokenizer: Any, options: str, _: str) -> ChatTemplate:
    """Return the tokenizer's template, kept because it is examined when it is first used."""
    return ChatTemplate(tokenizer, json.loads(options))


@dataclass(frozen=True)
class Encoder:
    """Text to token ids and back for the policy: a tokenizer, a template, and the maximum tokens of prompt and response."""

    tokenizer: Any
    template: str
    max_prompt: int
    max_response: int
    options: Mapping[str, Any] = field(default_factory=dict)  # of the chat template
    stop: tuple[int, ...] = ()  # the tokens of `model.stop`
    generation_stops: tuple[int, ...] = ()  # the ends in the model's own generation_config

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """The tokenizer's own template; None for `plain` and `beaver`."""
        if self.template != "chat":
            return None
        return ChatTemplate(self.tokenizer, self.options, self.stop, (*self.generation_stops, *_eos(self.tokenizer)))

    @property
    def end(self) -> int:
        """Return the id of the token that ends a response."""
        return self.chat.frame.end_id if self.chat else int(self.tokenizer.eos_token_id)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """The ids that end a sampled response, that of the responses which are trained on first."""
        return tuple(dict.fromkeys((self.end, *_eos(self.tokenizer), *self.generation_stops, *self.stop)))

    def require_usable(self) -> None:
        """Check that the template can be used, and that a prompt in it is not too long whatever its text.

        Raises:
            ConfigError: the template alone has `max_prompt` tokens or more.
            ModelError: the tokenizer has no chat template, or one without an end of a turn, or one that drops the texts.
        """
        around = len(self.whole_prompt("a"))
        if self.chat and around > self.max_prompt:
            problem = f"a prompt of one letter has {around} tokens in the chat template"
            raise ConfigError(f"model.max_prompt_tokens={self.max_prompt}: {problem}; set it to more")

    def whole_prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of the rendered prompt, not truncated."""
        return tuple(self.chat.ids(self.chat.prompt(text)) if self.chat else encode_prompt(text, self.template, self.tokenizer))

    def prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of the rendered prompt, truncated at the start, because the question is at its end; a bos is kept.

        Of a chat template nothing is cut but the text in it.
        """
        if self.chat:
            return self.whole_prompt(longest_end(text, lambda rest: len(self.whole_prompt(rest)) <= self.max_prompt))
        ids = self.whole_prompt(text)
        cut = max(0, len(ids) - self.max_prompt)
        head = ids[:1] if cut and ids[0] == self.tokenizer.bos_token_id else ()
        return head + ids[cut + len(head) :]

    def whole_response(self, text: str, with_end: bool = True) -> tuple[int, ...]:
        """Return the ids of the response, not truncated, with or without the end of the turn."""
        return tuple(self.chat.response_ids(text, with_end) if self.chat else encode_response(text, self.tokenizer, with_end))

    def response(self, text: str) -> tuple[int, ...]:
        """Return the ids of the response and the end of the turn, truncated at the end: a truncated response has no end."""
        return self.whole_response(text)[: self.max_response]

    def truncate_response(self, text: str) -> str:
        """Return the text of the response that is left after truncation; unchanged if it is short enough."""
        return self.decode(self.response(text)) if self.is_cut(None, text) else text

    def decode(self, tokens: tuple[int, ...]) -> str:
        """Return the text of sampled tokens, without the stop id at the end and what the chat template puts around an answer.

        Other special tokens are shown.
        """
        kept = tokens[:-1] if tokens and tokens[-1] in self.stops else tokens
        text = str(self.tokenizer.decode(kept, skip_special_tokens=False))
        return self.chat.answer_of(text) if self.chat else text

    def is_cut(self, prompt: str | None, response: str | None) -> bool:
        """Return whether the prompt or the response is truncated; None is not checked."""
        long_prompt = prompt is not None and len(self.whole_prompt(prompt)) > self.max_prompt
        return long_prompt or (response is not None and len(self.whole_response(response)) > self.max_response)


def _eos(tokenizer: Any) -> tuple[int, ...]:
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)


def _encode(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_bos(ids: list[int], tokenizer: Any) -> list[int]:
    """Return the ids with one bos at the start if the tokenizer adds one to every text."""
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and list(tokenizer("")["input_ids"])[:1] == [bos]
    return [bos, *ids] if adds_bos and ids[:1] != [bos] else ids


def _with_eos(ids: list[int], tokenizer: Any) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{_name(tokenizer)}: no eos token, expected one to mark the end of a response; set eos_token")
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or type(tokenizer).__name__)
