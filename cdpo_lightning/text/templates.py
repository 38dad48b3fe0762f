"""Prompts and responses as token ids, and how they are truncated.

For a policy, prompt and response are tokenized separately, so that a response always starts where the prompt's ids end.
Published scorers instead read prompt and response tokenized as one text, which with a SentencePiece vocabulary does not
give the same ids (`encode_scored`).
"""

from dataclasses import dataclass
from typing import Any

from cdpo_lightning.errors import ConfigError, ModelError

_TEXTS = {"beaver": "BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:", "plain": "{prompt}\n"}
TEMPLATES = ("chat", *_TEXTS)


def render_prompt(prompt: str, template: str, tokenizer: Any) -> str:
    """Return the prompt in a template: `chat` (the tokenizer's own), `beaver` (that of Safe RLHF) or `plain` (one line).

    The beaver template ends without a space, because one more token there changes the scores of published models.

    Raises:
        ConfigError: the template is unknown.
        ModelError: the template is `chat`, and the tokenizer has none.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"template: got {template!r}, expected one of {', '.join(TEMPLATES)}; choose one")
    if template != "chat":
        return _TEXTS[template].format(prompt=prompt)
    if not tokenizer.chat_template:
        raise ModelError(f"{_name(tokenizer)}: no chat template, expected one for template chat; use beaver or plain")
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def encode_prompt(prompt: str, template: str, tokenizer: Any) -> list[int]:
    """Return the ids of the rendered prompt, with one bos if the tokenizer adds one, and without an eos at the end."""
    return _with_bos(_encode(render_prompt(prompt, template, tokenizer), tokenizer), template, tokenizer)


def encode_response(response: str, tokenizer: Any, with_eos: bool = True) -> list[int]:
    """Return the ids of the response, without special tokens at the start, and with one eos at the end.

    Raises:
        ModelError: `with_eos` is true and the tokenizer has no eos.
    """
    return _with_eos(_encode(response, tokenizer), tokenizer) if with_eos else _encode(response, tokenizer)


def encode_scored(prompt: str, response: str, template: str, tokenizer: Any, max_tokens: int) -> list[int]:
    """Return the ids that a scorer reads: prompt and response as one text, with one bos and the eos whose state is scored.

    More than `max_tokens` are truncated at the start. With the template `pair`, the tokenizer encodes two texts with its own
    special tokens, and truncates the longer one at the end.

    Raises:
        ModelError: the tokenizer has no eos.
    """
    if template == "pair":
        return list(tokenizer(prompt, response, truncation="longest_first", max_length=max_tokens)["input_ids"])
    ids = _encode(render_prompt(prompt, template, tokenizer) + response, tokenizer)
    return _with_eos(_with_bos(ids, template, tokenizer), tokenizer)[-max_tokens:]


@dataclass(frozen=True)
class Encoder:
    """Text to token ids and back for the policy: a tokenizer, a template, and the maximum tokens of prompt and response."""

    tokenizer: Any
    template: str
    max_prompt: int
    max_response: int

    @property
    def eos(self) -> int:
        """Return the id of the token that ends a response."""
        return int(self.tokenizer.eos_token_id)

    def prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of the rendered prompt, truncated at the start, because the question is at its end; a bos is kept."""
        ids = encode_prompt(text, self.template, self.tokenizer)
        cut = max(0, len(ids) - self.max_prompt)
        head = ids[:1] if cut and ids[0] == self.tokenizer.bos_token_id else []
        return tuple(head + ids[cut + len(head) :])

    def response(self, text: str) -> tuple[int, ...]:
        """Return the ids of the response and the eos, truncated at the end: a truncated response has no eos."""
        return tuple(encode_response(text, self.tokenizer)[: self.max_response])

    def truncate_response(self, text: str) -> str:
        """Return the text of the response that is left after truncation; unchanged if it is short enough."""
        return self.decode(self.response(text)) if self.is_cut(None, text) else text

    def decode(self, tokens: tuple[int, ...]) -> str:
        """Return the text of sampled tokens, without the eos at the end; other special tokens are shown."""
        kept = tokens[:-1] if tokens[-1:] == (self.eos,) else tokens
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def is_cut(self, prompt: str | None, response: str | None) -> bool:
        """Return whether the prompt or the response is truncated; None is not checked."""
        long_prompt = prompt is not None and len(encode_prompt(prompt, self.template, self.tokenizer)) > self.max_prompt
        return long_prompt or (response is not None and len(encode_response(response, self.tokenizer)) > self.max_response)


def _encode(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_bos(ids: list[int], template: str, tokenizer: Any) -> list[int]:
    """Return the ids with one bos at the start if the tokenizer adds one to every text; a chat template adds its own."""
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and list(tokenizer("")["input_ids"])[:1] == [bos]
    return [bos, *ids] if template != "chat" and adds_bos and ids[:1] != [bos] else ids


def _with_eos(ids: list[int], tokenizer: Any) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{_name(tokenizer)}: no eos token, expected one to mark the end of a response; set eos_token")
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or type(tokenizer).__name__)
