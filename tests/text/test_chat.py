"""Chat templates: prompt and response are the tokenizer's own conversation, up to and including the end of the turn.

The templates are those in TRL's package. The truth is `apply_chat_template`, called here as a model card calls it. The records of
this project are single turns, so conversations of several turns and with a system turn are not compared.
"""

import datetime as dt
import re
from pathlib import Path

import pytest
import trl
from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from cdpo_lightning.errors import ConfigError, ModelError
from cdpo_lightning.text.templates import Encoder, encode_scored

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(file.stem for file in FOLDER.glob("*.jinja") if not file.stem.endswith("_training"))
IM_END, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
# Published bos, eos, and the end of an assistant's turn where it is another token; by the beginning of the template's name.
ENDS = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", None),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", None),
    "diffusion_gemma": ("<bos>", "<eos>", "<turn|>"),
    "gemma": ("<bos>", "<eos>", "<end_of_turn>"),
    "gemma4": ("<bos>", "<eos>", "<turn|>"),
    "glm4moe": (None, END_OF_TEXT, "<|user|>"),
    "gptoss": ("<|startoftext|>", "<|return|>", None),
    "idefics3": ("<|begin_of_text|>", "<|end_of_text|>", "<end_of_utterance>"),
    "lfm2": ("<|startoftext|>", IM_END, None),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", None),
    "llava_next": ("<s>", "</s>", None),
    "muse_glimmer": ("<|begin_of_text|>", "<|eot|>", None),
    "nemotron_3": ("<s>", IM_END, None),
    "phi3": ("<s>", END_OF_TEXT, "<|end|>"),
    "qwen": (None, END_OF_TEXT, IM_END),  # the base models: chat models have <|im_end|> as their eos
    "smolvlm": ("<|im_start|>", "<end_of_utterance>", None),
}
LEFT_OPEN = {"glm4moe"}  # their template puts nothing behind an answer
QUESTIONS = ["Is tea good?", "2 + 2 =", "Überall\n\nline two?"]
ANSWERS = ["Yes, very.", "4", "No.\n\nWell:\n* one\n* two", "<b>tea</b>"]


def published(name: str) -> tuple[str | None, str, str]:
    """Return bos, eos and the end of a turn of the template."""
    key = max((key for key in ENDS if name.startswith(key)), key=len)
    bos, eos, end = ENDS[key]
    return bos, eos, end or eos


def special_tokens(source: str) -> list[str]:
    """Return what looks like a special token in a template: <|im_end|>, <turn|>, <end_of_turn>, [gMASK]."""
    tokens = re.findall(r"<[|｜/]?[A-Za-z][^<>\s'\"{}]*>|<\|[^<>\s'\"{}|]+\|?>|\[gMASK\]", source)
    return sorted(set(tokens))


class FixedDay(dt.datetime):
    """Today is the day that our renderings have: the first one of Llama 3.1's template."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


@pytest.fixture
def on_that_day(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", FixedDay)


@pytest.fixture(scope="module")
def tokenizers(chat_tokenizer):
    def make(name: str):
        source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
        bos, eos, end = published(name)
        return chat_tokenizer(source, bos, eos, sorted({*special_tokens(source), end}))

    return make


def conversation(tokenizer, question: str, answer: str) -> str:
    """Return the tokenizer's rendering, content as a text or, for a vision model's template, as parts."""
    for content in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
        turns = [{"role": "user", "content": content(question)}, {"role": "assistant", "content": content(answer)}]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError:
            continue
        if question in text and answer in text:
            return text
    raise AssertionError("the template renders neither")


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_response_are_the_tokenizers_own_conversation(name, tokenizers, on_that_day):
    tokenizer, end = tokenizers(name), published(name)[2]
    end_id = tokenizer.convert_tokens_to_ids(end)
    encoder = Encoder(tokenizer, "chat", 4096, 4096, stop=(end_id,) if name in LEFT_OPEN else ())
    for question in QUESTIONS:
        for answer in ANSWERS:
            text = conversation(tokenizer, question, answer)
            if name in LEFT_OPEN:
                text += end
            head, _, tail = text.rpartition(answer)
            expected = head + answer + tail[: tail.index(end) + len(end)]
            ids = encoder.prompt(question) + encoder.response(answer)
            assert list(ids) == tokenizer(expected, add_special_tokens=False)["input_ids"]
            assert ids[-1] == encoder.stops[0] == end_id
            assert encoder.decode(encoder.response(answer)) == answer


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_the_generation_prompt_but_for_an_open_thought(name, tokenizers):
    """What is sampled continues the text that a chat server sends, or stops before a thought that the template leaves out."""
    encoder = Encoder(tokenizers(name), "chat", 4096, 4096, stop=(0,) if name in LEFT_OPEN else ())
    assert encoder.chat.frame.dropped in ("", "\n", "<think>\n")


@pytest.mark.parametrize("name", ["gemma", "phi3", "qwen2_5"])
def test_sampling_stops_at_the_end_of_the_turn_at_eos_and_at_the_models_own_ends(name, tokenizers):
    tokenizer = tokenizers(name)
    _, eos, end = published(name)
    encoder = Encoder(tokenizer, "chat", 4096, 4096, stop=(7,), generation_stops=(8, 7))
    assert encoder.stops == (*tokenizer.convert_tokens_to_ids([end, eos]), 8, 7)
    answer = encoder.response("Yes, very.")[:-1]
    assert {encoder.decode((*answer, stop)) for stop in encoder.stops} == {"Yes, very."}


def test_an_open_turn_is_refused_unless_a_stop_is_named(tokenizers):
    with pytest.raises(ModelError, match=r"no special token follows an answer.*model\.stop") as error:
        Encoder(tokenizers("glm4moe"), "chat", 4096, 4096).require_usable()
    assert "\n" not in str(error.value)


def test_a_template_option_reaches_the_template(tokenizers):
    tokenizer = tokenizers("qwen3_5_think")
    open_thought, closed = (Encoder(tokenizer, "chat", 4096, 4096, options) for options in ({}, {"enable_thinking": False}))
    assert tokenizer.decode(open_thought.prompt("tea")).endswith("<think>")
    assert tokenizer.decode(closed.prompt("tea")).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.decode(closed.response("Yes")) == f"Yes{IM_END}"


@pytest.mark.parametrize(("name", "date"), [("llama3_2", "26 Jul 2024"), ("gptoss", "2024-07-26")])
def test_the_date_in_a_template_does_not_depend_on_the_day(name, date, tokenizers):
    tokenizer = tokenizers(name)
    assert date in tokenizer.decode(Encoder(tokenizer, "chat", 4096, 4096, stop=(0,)).prompt("tea"))


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPTED = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TOKENS = ["<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (PROMPTED.replace("{{ m.content }}", "{{ 'tea' }}"), "leaves out the text of the user"),
        (PROMPTED.replace("<|im_end|>", ""), "no special token follows"),
        (PROMPTED.replace("{{ m.content }}", "{{ m.content }}{{ m.content | length }}"), "depends on the texts|no special token"),
        ("{{ raise_exception('no') }}", "its template fails .no."),
        ("{{ messages | length }}" + PROMPTED, "begins in another way"),
        (None, "no chat template"),
    ],
    ids=["no text", "no end", "length", "fails", "other prompt", "none"],
)
def test_a_template_that_cannot_be_used_is_refused_in_one_line(source, problem, chat_tokenizer):
    with pytest.raises(ModelError, match=problem) as error:
        Encoder(chat_tokenizer(source, None, "<|endoftext|>", TOKENS), "chat", 4096, 4096).require_usable()
    assert "use beaver or plain" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_answer_of_which_the_template_drops_a_part_is_refused(tokenizers):
    with pytest.raises(ModelError, match="leaves out a part"):
        Encoder(tokenizers("deepseek_r1_distill"), "chat", 4096, 4096).response("a thought</think>the answer")


# Truncation


def test_of_a_long_prompt_the_users_text_loses_its_beginning(chat_tokenizer):
    encoder = Encoder(chat_tokenizer("<s>" + PROMPTED, None, "<|im_end|>", ["<s>", *TOKENS]), "chat", 24, 4096)
    text = " ".join(f"{i}" for i in range(50)) + " end?"
    ids = encoder.prompt(text)
    assert 20 < len(ids) <= 24
    head, _, tail = encoder.tokenizer.decode(ids).partition("<|im_start|>user\n")
    assert head == "<s>"
    kept = tail.removesuffix("<|im_end|>\n<|im_start|>assistant\n")
    assert kept != tail
    assert text.endswith(kept)
    assert kept.endswith(" end?")
    assert encoder.is_cut(text, None)
    assert not encoder.is_cut("tea", None)


def test_a_limit_below_the_frame_is_refused(chat_tokenizer):
    encoder = Encoder(chat_tokenizer(PROMPTED, None, "<|im_end|>", TOKENS), "chat", 5, 4096)
    with pytest.raises(ConfigError, match=r"^model\.max_prompt_tokens=5"):
        encoder.require_usable()


# Scored text


@pytest.mark.parametrize("name", NAMES)
def test_scored_text_is_the_conversation_as_a_model_card_has_it(name, tokenizers, on_that_day):
    tokenizer = tokenizers(name)
    text = conversation(tokenizer, "Is tea good?", "Yes, very.")
    scored = encode_scored("Is tea good?", "Yes, very.", "chat", tokenizer, 4096)
    assert tokenizer.decode(scored) == text
    assert scored == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_long_scored_text_loses_the_beginning_of_the_prompt(chat_tokenizer):
    tokenizer = chat_tokenizer(PROMPTED, None, "<|im_end|>", TOKENS)
    scored = encode_scored("9 " * 50 + "tea?", "Yes", "chat", tokenizer, 24)
    text = tokenizer.decode(scored)
    assert len(scored) <= 24
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("tea?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n")
