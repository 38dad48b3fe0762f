"""Small tokenizers that treat chat templates as the published ones do."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# The pattern of Llama 3 and Qwen, simplified: line breaks are tokens of their own, a word takes the space before it along.
_WORDS = Regex(r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_TEXT = ["user\nassistant\nsystem\n\nmodel\n\n\n Is tea good? Yes, very. think thinking\nfinal"] * 20


@pytest.fixture(scope="session")
def chat_tokenizer():
    """Return a function that makes a byte-level tokenizer with merges, special tokens and a chat template."""

    def make(template: str, bos: str | None, eos: str, others: list[str]) -> PreTrainedTokenizerFast:
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

    return make
