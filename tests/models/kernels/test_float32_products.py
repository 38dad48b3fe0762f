"""A bf16 model whose layers multiply in float32: same weights, log-probabilities no further from the exact ones."""

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import nn

from cdpo_lightning.models.kernels import float32_products
from cdpo_lightning.models.kernels.attention import FLOAT32_ATTENTION
from cdpo_lightning.models.kernels.float32_products import Float32Linear, multiply_in_float32
from cdpo_lightning.models.lm.layers import compiled
from cdpo_lightning.models.lm.packed_forward import response_hidden_states, response_logp
from cdpo_lightning.models.sampling.generation import sample
from cdpo_lightning.text.packing import pack

ROWS = pack([((3, 4, 5, 6, 7, 8, 9, 10, 11, 12 + i), [tuple(range(2, 12 + i)), (8, 3, 9, 1)]) for i in range(6)])
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def slow_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behave as on a processor without matrix units for bf16."""
    monkeypatch.setattr(float32_products, "faster_in_float32", lambda device: device == CPU)


@pytest.fixture
def model(make_llama: Any) -> nn.Module:
    """A float32 model with weights that bf16 represents exactly."""
    return make_llama(heads=4, vocabulary=24).bfloat16().float()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    logp = response_logp(model, ROWS)
    logp.sum().backward()
    return [logp.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def bytes_kept(model: nn.Module) -> int:
    """Return the bytes kept for the backward pass, without the weights and the projection on the vocabulary."""
    own, seen = {p.data_ptr() for p in model.parameters()}, {}

    def note(t: torch.Tensor) -> torch.Tensor:
        if t.data_ptr() not in own and t.is_floating_point():
            seen[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        states = response_hidden_states(model, ROWS)
    assert states.requires_grad
    return sum(seen.values())


def relative_errors(values: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    return [float((f.double() - e).norm() / e.norm()) for f, e in zip(values, exact, strict=True)]


def with_float32_products(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    multiply_in_float32(other, CPU)
    return other


def test_weights_their_names_and_the_head_are_unchanged(model: nn.Module) -> None:
    other = with_float32_products(model)
    assert other.state_dict().keys() == model.state_dict().keys()
    kinds = {name: type(m) for name, m in other.named_modules() if isinstance(m, nn.Linear)}
    assert kinds.pop("lm_head") is nn.Linear
    assert set(kinds.values()) == {Float32Linear}
    assert other.config._attn_implementation == FLOAT32_ATTENTION  # type: ignore[union-attr]


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_a_model_on_another_device_is_unchanged(model: nn.Module, device: str) -> None:
    multiply_in_float32(model, torch.device(device))
    assert not any(type(m) is Float32Linear for m in model.modules())
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_another_attention_than_sdpa_is_kept(model: nn.Module) -> None:
    model.set_attn_implementation("eager")  # type: ignore[operator]
    multiply_in_float32(model, CPU)
    assert model.config._attn_implementation == "eager"  # type: ignore[union-attr]


def test_errors_against_float64_are_no_larger_than_those_of_bf16_products(model: nn.Module) -> None:
    exact = [t.double() for t in gradients(copy.deepcopy(model).double())]
    plain = relative_errors(gradients(copy.deepcopy(model).bfloat16()), exact)
    wide = relative_errors(gradients(with_float32_products(model).bfloat16()), exact)
    assert max(wide) < 0.05
    assert sum(wide) <= 1.05 * sum(plain)


def test_in_float32_values_and_gradients_are_unchanged_up_to_rounding(model: nn.Module) -> None:
    """Rows are joined without padding, padded for attention and joined again, forwards and backwards."""
    for result, right in zip(gradients(with_float32_products(model)), gradients(model), strict=True):
        torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-6)


def test_joined_rows_give_the_log_probabilities_of_single_sequences(any_model: Any, logp_alone: Any) -> None:
    multiply_in_float32(any_model, CPU)
    assert any_model.config._attn_implementation == FLOAT32_ATTENTION
    rows = [([2, 3, 4], [[5, 6, 1]]), ([7], [[2, 1], [2, 2, 2, 1]]), ([3, 9, 9], [[4, 1], [1]])]
    alone = torch.stack([logp_alone(any_model, prompt, y) for prompt, responses in rows for y in responses])
    torch.testing.assert_close(response_logp(any_model, pack(rows)), alone.float(), rtol=1e-4, atol=1e-5)


def test_a_model_that_does_not_pass_the_layout_on_keeps_its_attention(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32_products, "probe_packing_support", lambda _: False)
    multiply_in_float32(model, CPU)
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_under_autocast_log_probabilities_are_those_of_bf16_products(model: nn.Module) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain, result = response_logp(model, ROWS), response_logp(with_float32_products(model), ROWS)
    torch.testing.assert_close(result, plain, rtol=0.02, atol=0.1)


def test_a_model_with_float32_products_can_be_sampled(model: nn.Module) -> None:
    drawn = sample(with_float32_products(model).bfloat16(), [(3, 4), (5,)], 3, 8, (1,), 0, 4)
    assert len(drawn) == 6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch._dynamo looks at much that warns
def test_compiled_it_is_one_graph_and_keeps_less_for_the_backward_pass(model: nn.Module) -> None:
    other = with_float32_products(model).bfloat16()
    expected = gradients(other)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with compiled(other, True, CPU):
        result, kept = gradients(other), bytes_kept(other)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert kept < 0.6 * bytes_kept(other)
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.1)
