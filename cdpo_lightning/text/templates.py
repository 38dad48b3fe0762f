"""How a prompt and a response become token ids, each on its own, and what is cut when they are too long.

Shapes: ids are plain lists of int. A response always starts where the prompt's ids end, so a policy's log-probability
of it needs no search for the border. A scorer is different: published scorers read prompt and response tokenized as one
text, which in SentencePiece vocabularies is not the same ids (`encode_scored`).
"""

from dataclasses import dataclass
from typing import Any

from cdpo_lightning.errors import ConfigError, ModelError

_TEXTS = {"beaver": "BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:", "plain": "{prompt}\n"}
TEMPLATES = ("chat", *_TEXTS)


def render_prompt(prompt: str, template: str, tokenizer: Any) -> str:
    """The prompt as the model is to read it: `chat` (the tokenizer's own), `beaver` or `plain` (a line).

    The beaver template ends without a space: one more token there shifts the scores of published models.

    Raises:
        ConfigError: no such template.
        ModelError: `chat`, but the tokenizer has no chat template.
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
    """Ids of the rendered prompt, with one bos if the tokenizer adds one, and never an eos at its end."""
    return _with_bos(_encode(render_prompt(prompt, template, tokenizer), tokenizer), template, tokenizer)


def encode_response(response: str, tokenizer: Any, with_eos: bool = True) -> list[int]:
    """Ids of the response, without special tokens in front, and the eos that says it is finished.

    Raises:
        ModelError: an eos is wanted and the tokenizer has none.
    """
    return _with_eos(_encode(response, tokenizer), tokenizer) if with_eos else _encode(response, tokenizer)


def encode_scored(prompt: str, response: str, template: str, tokenizer: Any, max_tokens: int) -> list[int]:
    """Ids a scorer reads: prompt and response tokenized as one text, one bos, and the eos it is scored at.

    Too long, it loses its beginning. `pair` are two texts with the special tokens that the tokenizer puts around them; too
    long, the longer one loses its end.

    Raises:
        ModelError: the tokenizer has no eos.
    """
    if template == "pair":
        return list(tokenizer(prompt, response, truncation="longest_first", max_length=max_tokens)["input_ids"])
    ids = _encode(render_prompt(prompt, template, tokenizer) + response, tokenizer)
    return _with_eos(_with_bos(ids, template, tokenizer), tokenizer)[-max_tokens:]


@dataclass(frozen=True)
class Encoder:
    """Text to token ids and back for the policy: one tokenizer, one template, and the longest prompt and response."""

    tokenizer: Any
    template: str
    max_prompt: int
    max_response: int

    @property
    def eos(self) -> int:
        """The token that ends a response."""
        return int(self.tokenizer.eos_token_id)

    def prompt(self, text: str) -> tuple[int, ...]:
        """Ids of the rendered prompt. Too long, it loses its start, for its end holds the question; a bos stays."""
        ids = encode_prompt(text, self.template, self.tokenizer)
        cut = max(0, len(ids) - self.max_prompt)
        head = ids[:1] if cut and ids[0] == self.tokenizer.bos_token_id else []
        return tuple(head + ids[cut + len(head) :])

    def response(self, text: str) -> tuple[int, ...]:
        """Ids of the response and the eos. Too long, it loses its end and with it the eos: it is not finished."""
        return tuple(encode_response(text, self.tokenizer)[: self.max_response])

    def as_read(self, text: str) -> str:
        """The response as far as its tokens go: itself, unless it is cut."""
        return self.decode(self.response(text)) if self.is_cut(None, text) else text

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text of sampled tokens: special ones in the middle are shown, an eos at the end is not."""
        shown = tokens[:-1] if tokens[-1:] == (self.eos,) else tokens
        return str(self.tokenizer.decode(shown, skip_special_tokens=False))

    def is_cut(self, prompt: str | None, response: str | None) -> bool:
        """Whether the prompt, or the response, loses tokens."""
        long_prompt = prompt is not None and len(encode_prompt(prompt, self.template, self.tokenizer)) > self.max_prompt
        return long_prompt or (response is not None and len(encode_response(response, self.tokenizer)) > self.max_response)


def _encode(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_bos(ids: list[int], template: str, tokenizer: Any) -> list[int]:
    """One bos in front where this tokenizer begins every text with one; a chat template brings its own, if any."""
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and list(tokenizer("")["input_ids"])[:1] == [bos]
    return [bos, *ids] if template != "chat" and adds_bos and ids[:1] != [bos] else ids


def _with_eos(ids: list[int], tokenizer: Any) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{_name(tokenizer)}: no eos token, expected one to end a response with; set eos_token")
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or type(tokenizer).__name__)
