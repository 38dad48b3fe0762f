"""Chat templates: prompt and response are the tokenizer's own conversation, up to and including the end of the turn.

The templates are those in TRL's package. The truth is `apply_chat_template`, called here as a model card calls it. The records of
this project are single turns, so conversations of several turns and with a system turn are not compared.
"""

import datetime as dt

import pytest
from jinja2 import TemplateError
from transformers.utils import chat_template_utils
from trl.data_utils import apply_chat_template

from cdpo_lightning.errors import ConfigError, ModelError
from cdpo_lightning.text.templates import Encoder, encode_scored
from tests.text.chat_tokenizers import IM_END, LEFT_OPEN, NAMES, make_tokenizer, published, published_tokenizer

QUESTIONS = ["Is tea good?", "2 + 2 =", "Überall\n\nline two?"]
ANSWERS = ["Yes, very.", "4", "No.\n\nWell:\n* one\n* two", "<b>tea</b>"]


class FixedDay(dt.datetime):
    """Today is the day that our renderings have: the first one of Llama 3.1's template."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


@pytest.fixture
def on_that_day(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", FixedDay)


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
def test_prompt_and_response_are_the_tokenizers_own_conversation(name, on_that_day):
    tokenizer, end = published_tokenizer(name), published(name)[2]
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
def test_the_prompt_is_the_generation_prompt_but_for_an_open_thought(name):
    """What is sampled continues the text that a chat server sends, or stops before a thought that the template leaves out."""
    encoder = Encoder(published_tokenizer(name), "chat", 4096, 4096, stop=(0,) if name in LEFT_OPEN else ())
    assert encoder.chat.frame.dropped in ("", "\n", "<think>\n")


@pytest.mark.parametrize("name", ["gemma", "phi3", "qwen2_5"])
def test_sampling_stops_at_the_end_of_the_turn_at_eos_and_at_the_models_own_ends(name):
    tokenizer = published_tokenizer(name)
    _, eos, end = published(name)
    encoder = Encoder(tokenizer, "chat", 4096, 4096, stop=(7,), generation_stops=(8, 7))
    assert encoder.stops == (*tokenizer.convert_tokens_to_ids([end, eos]), 8, 7)
    answer = encoder.response("Yes, very.")[:-1]
    assert {encoder.decode((*answer, stop)) for stop in encoder.stops} == {"Yes, very."}


def test_an_open_turn_is_refused_unless_a_stop_is_named():
    with pytest.raises(ModelError, match=r"no special token follows an answer.*model\.stop") as error:
        Encoder(published_tokenizer("glm4moe"), "chat", 4096, 4096).require_usable()
    assert "\n" not in str(error.value)


def test_a_template_option_reaches_the_template():
    tokenizer = published_tokenizer("qwen3_5_think")
    open_thought, closed = (Encoder(tokenizer, "chat", 4096, 4096, options) for options in ({}, {"enable_thinking": False}))
    assert tokenizer.decode(open_thought.prompt("tea")).endswith("<think>")
    assert tokenizer.decode(closed.prompt("tea")).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.decode(closed.response("Yes")) == f"Yes{IM_END}"


@pytest.mark.parametrize(("name", "date"), [("llama3_2", "26 Jul 2024"), ("gptoss", "2024-07-26")])
def test_the_date_in_a_template_does_not_depend_on_the_day(name, date):
    tokenizer = published_tokenizer(name)
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
        ({"rag": PROMPTED}, "its template fails .*default"),
        ("{{ messages | length }}" + PROMPTED, "begins in another way"),
        (None, "no chat template"),
    ],
    ids=["no text", "no end", "length", "fails", "no default", "other prompt", "none"],
)
def test_a_template_that_cannot_be_used_is_refused_in_one_line(source, problem):
    with pytest.raises(ModelError, match=problem) as error:
        Encoder(make_tokenizer(source, None, "<|endoftext|>", TOKENS), "chat", 4096, 4096).require_usable()
    assert "use beaver or plain" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_answer_of_which_the_template_drops_a_part_is_refused():
    with pytest.raises(ModelError, match="leaves out a part"):
        Encoder(published_tokenizer("deepseek_r1_distill"), "chat", 4096, 4096).response("a thought</think>the answer")


# Truncation


def test_of_a_long_prompt_the_users_text_loses_its_beginning():
    encoder = Encoder(make_tokenizer("<s>" + PROMPTED, None, "<|im_end|>", ["<s>", *TOKENS]), "chat", 24, 4096)
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


def test_a_limit_below_the_frame_is_refused():
    encoder = Encoder(make_tokenizer(PROMPTED, None, "<|im_end|>", TOKENS), "chat", 5, 4096)
    with pytest.raises(ConfigError, match=r"^model\.max_prompt_tokens=5"):
        encoder.require_usable()


# Scored text


@pytest.mark.parametrize("name", NAMES)
def test_scored_text_is_the_conversation_as_a_model_card_has_it(name, on_that_day):
    tokenizer = published_tokenizer(name)
    text = conversation(tokenizer, "Is tea good?", "Yes, very.")
    scored = encode_scored("Is tea good?", "Yes, very.", "chat", tokenizer, 4096)
    assert tokenizer.decode(scored) == text
    assert scored == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_long_scored_text_loses_the_beginning_of_the_prompt():
    tokenizer = make_tokenizer(PROMPTED, None, "<|im_end|>", TOKENS)
    scored = encode_scored("9 " * 50 + "tea?", "Yes", "chat", tokenizer, 24)
    text = tokenizer.decode(scored)
    assert len(scored) <= 24
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("tea?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n")


# TRL


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {*LEFT_OPEN, "idefics3", "smolvlm", "llava_next"}])
def test_trl_tokenizes_the_same_conversational_rows_to_the_same_ids(name, on_that_day):
    """`DPOTrainer` renders a row by this function; what it has behind the end of the turn is left out."""
    tokenizer = published_tokenizer(name)
    encoder = Encoder(tokenizer, "chat", 4096, 4096)
    question, answers = "Is tea good?", ["Yes, very.", "4"]
    chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in answers)
    prompt = [{"role": "user", "content": question}]
    row = apply_chat_template({"prompt": prompt, "chosen": chosen, "rejected": rejected}, tokenizer)
    for answer, kind in zip(answers, ("chosen", "rejected"), strict=True):
        theirs = (row["prompt"] + row[kind]).removesuffix(encoder.chat.frame.after)
        ours = encoder.prompt(question) + encoder.response(answer)
        assert list(ours) == tokenizer(theirs, add_special_tokens=False)["input_ids"]
