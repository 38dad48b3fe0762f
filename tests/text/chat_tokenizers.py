"""Small tokenizers with chat templates that are published, read from TRL's package."""

import re
from functools import cache
from pathlib import Path

import trl
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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

# The pattern of Llama 3 and Qwen, simplified: line breaks are tokens of their own, a word takes the space before it along.
_WORDS = Regex(r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_TEXT = ["user\nassistant\nsystem\n\nmodel\n\n\n Is tea good? Yes, very. think thinking\nfinal"] * 20


def published(name: str) -> tuple[str | None, str, str]:
    """Return bos, eos and the end of a turn of the template."""
    key = max((key for key in ENDS if name.startswith(key)), key=len)
    bos, eos, end = ENDS[key]
    return bos, eos, end or eos


def make_tokenizer(template: str | None, bos: str | None, eos: str, others: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with merges, special tokens and a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    special = [token for token in others if token not in (bos, eos)]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, additional_special_tokens=special, chat_template=template
    )


@cache
def published_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the template of that name, and whatever looks like a special token in it as one token."""
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    bos, eos, end = published(name)
    tokens = re.findall(r"<[|｜/]?[A-Za-z][^<>\s'\"{}]*>|<\|[^<>\s'\"{}|]+\|?>|\[gMASK\]", source)
    return make_tokenizer(source, bos, eos, sorted({*tokens, end}))
