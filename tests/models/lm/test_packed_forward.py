"""The log-probabilities are those of one sequence at a time; a model that cannot pack reads one response a row."""

import copy

import pytest
import torch
from transformers import BloomConfig, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig

from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.lm import packed_forward
from cdpo_lightning.models.sampling.generation import sample
from cdpo_lightning.text.packing import pack

# Rows of 1, 2 and 5 responses; equal and nested responses among them, prompts of different length.
ROWS = [
    ([2, 3, 4], [[5, 6, 1]]),
    ([7], [[2, 1], [2, 2, 2, 1]]),
    ([3, 9, 9, 10, 2], [[4, 1], [4, 5, 1], [4, 1], [1], [8, 7, 6, 5, 4, 3]]),
]


def alone(model, logp_alone):
    return torch.stack([logp_alone(model, prompt, y) for prompt, responses in ROWS for y in responses])


def test_packed_rows_in_float64(any_model, logp_alone):
    packed = packed_forward.response_logp(any_model.double(), pack(ROWS))
    torch.testing.assert_close(packed, alone(any_model, logp_alone), rtol=0, atol=1e-9)


def test_packed_rows_in_float32(any_model, logp_alone):
    packed = packed_forward.response_logp(any_model, pack(ROWS))
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed.double(), alone(any_model, logp_alone), rtol=1e-4, atol=0)


def test_packed_gradient(make_model, logp_alone):
    """GPT-2, for its norms compute in float64; Llama's do not."""
    model = make_model(GPT2Config).double()
    packed_forward.response_logp(model, pack(ROWS)).sum().backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    alone(model, logp_alone).sum().backward()
    for got, parameter in zip(packed, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=0, atol=1e-9)


def test_a_row_gives_the_same_in_every_batch(any_model):
    together = packed_forward.response_logp(any_model.double(), pack(ROWS))
    each = torch.cat([packed_forward.response_logp(any_model, pack([row])) for row in ROWS])
    torch.testing.assert_close(together, each, rtol=0, atol=1e-9)


def test_gradient_checkpointing_changes_no_value(make_model):
    model = make_model()
    plain = packed_forward.response_logp(model, pack(ROWS))
    model.activation_checkpointing_enable()
    torch.testing.assert_close(packed_forward.response_logp(model.train(), pack(ROWS)), plain)


def test_the_architectures_that_pack(any_model):
    packed_forward.detect_packing_support(any_model, "model.path=x")
    assert packed_forward.reads_packed(any_model)


CANNOT_PACK = [
    (Gemma2Config, {"final_logit_softcapping": 2.0}),
    (CohereConfig, {"logit_scale": 0.25}),
    (GraniteConfig, {"logits_scaling": 2.0}),
    (BloomConfig, {"n_layer": 1}),  # ALiBi: no positions to give it
]


@pytest.mark.parametrize(("family", "changes"), CANNOT_PACK)
def test_a_model_that_cannot_pack_reads_one_response_a_row(make_model, logp_alone, family, changes):
    model = make_model(family, **changes).double()
    packed_forward.detect_packing_support(model, "model.path=x")
    assert not packed_forward.reads_packed(model)
    assert packed_forward.reads_packed(copy.deepcopy(model)) is False  # policies are copies
    # Gemma 2 and Bloom compute a part in float32, whose rounding depends on the processor.
    torch.testing.assert_close(packed_forward.response_logp(model, pack(ROWS)), alone(model, logp_alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("family", "changes"), CANNOT_PACK)
def test_what_cannot_pack_is_sampled_from_its_own_logits(make_model, logp_alone, family, changes):
    """Prompts of two lengths, so that one of them is padded."""
    model = make_model(family, **changes)
    packed_forward.detect_packing_support(model, "model.path=x")
    prompts = [[2, 3, 4, 5], [7]]
    for drawn in sample(model, prompts, 3, 5, 1, 0, 8):
        expected = logp_alone(model, prompts[drawn.prompt], list(drawn.tokens))
        assert drawn.logp == pytest.approx(expected.item(), abs=1e-3)


def test_a_model_that_no_batch_leaves_alone_is_refused(make_model, monkeypatch):
    """One whose sequences see one another in a batch, however they are laid out."""
    model = make_model()
    forward = model.forward

    def mixing(*args, **options):
        result = forward(*args, **options)
        result.logits = result.logits + result.logits.roll(1, 0) * (len(result.logits) > 1)
        return result

    monkeypatch.setattr(model, "forward", mixing)
    monkeypatch.setattr(packed_forward, "packs", lambda _: False)
    with pytest.raises(ModelError, match=r"^model.path=x: Llama.* choose another model$"):
        packed_forward.detect_packing_support(model, "model.path=x")


def test_numerics_are_those_of_training(make_model):
    for precision, kind in [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]:
        with packed_forward.numerics(precision, torch.device("cpu")):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind
