"""Log-probabilities of packed rows equal those of one sequence at a time, with and without packing support."""

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


def tolerance(model):
    """Nats. Most families compute norms or positions in float32 even in a float64 model, which rounds differently by processor."""
    return 1e-9 if model.config.model_type == "gpt2" else 1e-5


def alone(model, logp_alone):
    """log pi of each response of `ROWS`, one sequence at a time."""
    return torch.stack([logp_alone(model, prompt, y) for prompt, responses in ROWS for y in responses])


def test_packed_rows_in_float64(any_model, logp_alone):
    packed = packed_forward.response_logp(any_model.double(), pack(ROWS))
    torch.testing.assert_close(packed, alone(any_model, logp_alone), rtol=0, atol=tolerance(any_model))


def test_packed_rows_in_float32(any_model, logp_alone):
    packed = packed_forward.response_logp(any_model, pack(ROWS))
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed.double(), alone(any_model, logp_alone), rtol=1e-4, atol=0)


def test_packed_gradient(make_model, logp_alone):
    """In GPT-2, whose norms are computed in float64; Llama's are not."""
    model = make_model(GPT2Config).double()
    packed_forward.response_logp(model, pack(ROWS)).sum().backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    alone(model, logp_alone).sum().backward()
    for got, parameter in zip(packed, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=0, atol=1e-9)


def test_log_probabilities_of_a_row_do_not_depend_on_the_batch(any_model):
    together = packed_forward.response_logp(any_model.double(), pack(ROWS))
    each = torch.cat([packed_forward.response_logp(any_model, pack([row])) for row in ROWS])
    torch.testing.assert_close(together, each, rtol=0, atol=tolerance(any_model))


def test_gradient_checkpointing_does_not_change_the_values(make_model):
    model = make_model()
    plain = packed_forward.response_logp(model, pack(ROWS))
    model.activation_checkpointing_enable()
    torch.testing.assert_close(packed_forward.response_logp(model.train(), pack(ROWS)), plain)


def test_common_architectures_support_packing(any_model):
    packed_forward.detect_packing_support(any_model, "model.path=x")
    assert packed_forward.supports_packing(any_model)


WITHOUT_PACKING = [
    (Gemma2Config, {"final_logit_softcapping": 2.0}),
    (CohereConfig, {"logit_scale": 0.25}),
    (GraniteConfig, {"logits_scaling": 2.0}),
    (BloomConfig, {"n_layer": 1}),  # ALiBi: it takes no positions
]


@pytest.mark.parametrize(("family", "changes"), WITHOUT_PACKING)
def test_without_packing_support_each_response_is_read_in_a_row_of_its_own(make_model, logp_alone, family, changes):
    model = make_model(family, **changes).double()
    packed_forward.detect_packing_support(model, "model.path=x")
    assert not packed_forward.supports_packing(model)
    assert packed_forward.supports_packing(copy.deepcopy(model)) is False  # policies are copies
    result = packed_forward.response_logp(model, pack(ROWS))
    torch.testing.assert_close(result, alone(model, logp_alone), rtol=0, atol=tolerance(model))


@pytest.mark.parametrize(("family", "changes"), WITHOUT_PACKING)
def test_without_packing_support_samples_have_the_log_probabilities_of_the_models_own_logits(
    make_model, logp_alone, family, changes
):
    """Prompts of two lengths, so that one of them is padded."""
    model = make_model(family, **changes)
    packed_forward.detect_packing_support(model, "model.path=x")
    prompts = [[2, 3, 4, 5], [7]]
    for drawn in sample(model, prompts, 3, 5, (1,), 0, 8):
        expected = logp_alone(model, prompts[drawn.prompt], list(drawn.tokens))
        assert drawn.logp == pytest.approx(expected.item(), abs=1e-3)


def test_a_model_whose_log_probabilities_depend_on_the_batch_is_refused(make_model, monkeypatch):
    """The sequences of a batch influence each other in this one, even in rows of their own."""
    model = make_model()
    forward = model.forward

    def mixing(*args, **options):
        result = forward(*args, **options)
        result.logits = result.logits + result.logits.roll(1, 0) * (len(result.logits) > 1)
        return result

    monkeypatch.setattr(model, "forward", mixing)
    monkeypatch.setattr(packed_forward, "probe_packing_support", lambda _: False)
    with pytest.raises(ModelError, match=r"^model.path=x: Llama.* choose another model$"):
        packed_forward.detect_packing_support(model, "model.path=x")


def test_the_precision_context_sets_the_type_of_products(make_model):
    for precision, kind in [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]:
        with packed_forward.precision_context(precision, torch.device("cpu")):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind
