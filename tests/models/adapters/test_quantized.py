"""4-bit weights: which layers have them, their rounding, adapters on them, and the conversion back to an ordinary model."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cdpo_lightning.config import ModelConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.adapters import lora as adapters
from cdpo_lightning.models.adapters.quantized import (
    BYTES_PER_PARAMETER,
    dequantize_layer,
    is_quantized,
    linear_layer_names,
    quantize,
)

pytest.importorskip("peft", reason="the extra `qlora` is not installed")
pytest.importorskip("bitsandbytes", reason="the extra `qlora` is not installed")

Logp = Callable[[nn.Module], torch.Tensor]
Reloaded = Callable[[nn.Module], nn.Module]
Trained = Callable[[nn.Module, float], nn.Module]
CONFIG = ModelConfig(lora_rank=4, lora_alpha=8.0, quantize="nf4")
CPU = torch.device("cpu")


@pytest.fixture
def base(make_llama: Callable[..., nn.Module]) -> nn.Module:
    return make_llama(hidden=64)


@pytest.fixture
def small(base: nn.Module) -> nn.Module:
    return quantize(base, CPU, torch.float32)


@pytest.fixture
def policy(small: nn.Module, trained: Trained) -> nn.Module:
    return trained(adapters.with_adapters(small, CONFIG, 0), 0.1)


def test_only_the_linear_layers_are_stored_in_four_bits(base: nn.Module, small: nn.Module) -> None:
    before = {name: p.clone() for name, p in base.named_parameters()}
    assert len(linear_layer_names(base)) == 2 * 7, "not the head, which is the embedding"
    for name in linear_layer_names(base):
        weight = small.get_submodule(name).weight
        state = weight.quant_state
        scales = sum(t.numel() * t.element_size() for t in (state.absmax, state.state2.absmax))
        assert (weight.nbytes + scales) / base.get_submodule(name).weight.numel() == pytest.approx(BYTES_PER_PARAMETER, rel=0.01)
    assert small.get_input_embeddings().weight.equal(base.get_input_embeddings().weight)  # type: ignore[operator]
    assert not any(p.requires_grad for p in small.parameters())
    assert all(before[name].equal(p) for name, p in base.named_parameters()), "the base is unchanged"
    assert quantize(small, CPU, torch.float32) is small
    assert not is_quantized(base)


def test_dequantised_weights_are_the_nearest_of_sixteen_values(base: nn.Module, small: nn.Module, logp: Logp) -> None:
    """[2305.14314] App. E: no weight is further than 0.1519 of its block's largest weight from the nearest value."""
    for name in linear_layer_names(base):
        full, read = base.get_submodule(name).weight, dequantize_layer(small.get_submodule(name)).weight
        blocks = full.detach().reshape(-1, 64)
        error = (read.reshape(-1, 64) - blocks).abs() / blocks.abs().amax(1, keepdim=True)
        assert 0.01 < error.mean() < 0.06
        assert error.max() < 0.1519 + 0.02, "the scales are rounded as well"
    difference = (logp(small) - logp(base)).abs().max()
    assert 1e-4 < difference < 1.0


def test_before_the_first_step_the_policy_is_the_quantised_reference_exactly(small: nn.Module, logp: Logp) -> None:
    policy = adapters.with_adapters(small, CONFIG, 0)
    assert logp(policy).equal(logp(small))
    assert {p.data_ptr() for p in small.parameters()} <= {p.data_ptr() for p in policy.parameters()}, "shared, not copied"
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 7
    assert all("lora_" in name for name in trained)


def test_the_merged_model_is_ordinary_and_has_the_same_output(
    base: nn.Module, policy: nn.Module, reloaded: Reloaded, logp: Logp
) -> None:
    plain = adapters.merged(policy)
    torch.testing.assert_close(logp(plain), logp(policy), rtol=0, atol=1e-5)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in base.named_parameters()]
    torch.testing.assert_close(logp(reloaded(plain)), logp(policy), rtol=0, atol=1e-5)


def test_merging_onto_the_full_weights_keeps_their_precision(base: nn.Module, policy: nn.Module) -> None:
    """This is how SFT's adapters are merged: the reference is then quantised once, not twice."""
    plain, untrained = adapters.merged(policy, base), adapters.merged(policy)
    for name in linear_layer_names(base):
        packed = policy.get_submodule(name).get_base_layer()  # type: ignore[operator]
        learned = untrained.get_submodule(name).weight - dequantize_layer(packed).weight
        torch.testing.assert_close(plain.get_submodule(name).weight - base.get_submodule(name).weight, learned)


def test_a_quantised_model_without_adapters_becomes_an_ordinary_one(
    base: nn.Module, small: nn.Module, reloaded: Reloaded, logp: Logp
) -> None:
    """The reference is such a model; it is exported and read by vLLM like a policy."""
    plain = adapters.merged(small)
    torch.testing.assert_close(logp(plain), logp(small), rtol=0, atol=1e-5)
    torch.testing.assert_close(logp(reloaded(plain)), logp(small), rtol=0, atol=1e-5)
    assert is_quantized(small)


def test_only_the_adapters_get_a_gradient(policy: nn.Module) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    policy(input_ids=tokens).logits.sum().backward()
    assert all((p.grad is not None) == ("lora_" in name) for name, p in policy.named_parameters())


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Embedding has no linear layers"):
        quantize(nn.Embedding(3, 4), CPU, torch.float32)
