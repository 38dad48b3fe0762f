"""Adapters: disabled, the model equals its base exactly; merged, it equals the policy; nothing else is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cdpo_lightning.config import ModelConfig
from cdpo_lightning.models.adapters import lora as adapters

pytest.importorskip("peft", reason="the extra `lora` is not installed")

Logp = Callable[[nn.Module], torch.Tensor]
Reloaded = Callable[[nn.Module], nn.Module]
Trained = Callable[[nn.Module, float], nn.Module]
CONFIG = ModelConfig(lora_rank=4, lora_alpha=8.0)


@pytest.fixture
def base(make_llama: Callable[..., nn.Module]) -> nn.Module:
    return make_llama(hidden=32)


def test_without_its_adapters_the_policy_equals_the_base_exactly_and_shares_its_weights(
    base: nn.Module, logp: Logp, trained: Trained
) -> None:
    from peft.tuners.lora import LoraLayer

    before = logp(base)
    policy = adapters.with_adapters(base, CONFIG, 0)
    assert logp(policy).equal(before), "before the first step the policy is the reference"
    trained(policy, 0.3)
    assert (logp(policy) - before).abs().max() > 0.1
    assert logp(base).equal(before)
    for part in policy.modules():
        if isinstance(part, LoraLayer):
            part.enable_adapters(False)
    assert logp(policy).equal(before)
    mine = {p.data_ptr() for name, p in policy.named_parameters() if "lora_" not in name}
    assert mine == {p.data_ptr() for p in base.parameters()}


def test_the_merged_model_is_ordinary_and_has_the_same_output(
    base: nn.Module, reloaded: Reloaded, logp: Logp, trained: Trained
) -> None:
    policy = trained(adapters.with_adapters(base, CONFIG, 0), 0.3)
    plain = adapters.merged(policy)
    torch.testing.assert_close(logp(plain), logp(policy), rtol=0, atol=1e-5)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in base.named_parameters()]
    torch.testing.assert_close(logp(reloaded(plain)), logp(policy), rtol=0, atol=1e-5)
    assert adapters.merged(base) is base


def test_a_second_stage_continues_with_the_adapters_of_the_first(base: nn.Module, logp: Logp, trained: Trained) -> None:
    """PD-DPO's policy starts from its reward policy, and does not change that."""
    first = trained(adapters.with_adapters(base, CONFIG, 0), 0.3)
    before = logp(first)
    second = adapters.with_adapters(first, CONFIG, 1)
    assert logp(second).equal(before)
    trained(second, 0.3)
    assert logp(first).equal(before)
    assert not logp(second).equal(before)
    count = [sum(p.numel() for p in adapters.policy_parameters(model).values()) for model in (first, second)]
    assert count[0] == count[1]


def test_only_the_adapters_are_trained_and_listed(base: nn.Module) -> None:
    """Rank 4 on 7 linear layers of 2 blocks: 4 * (inputs + outputs) each; head and embedding have no adapters."""
    policy = adapters.with_adapters(base, CONFIG, 0)
    count = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert count == 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert sum(p.numel() for p in adapters.policy_parameters(policy).values()) == count
    assert set(adapters.policy_parameters(base)) == {name for name, _ in base.named_parameters()}


def test_peft_reads_the_saved_adapters(base: nn.Module, tmp_path: Path, logp: Logp, trained: Trained) -> None:
    from peft import PeftModel

    policy = trained(adapters.with_adapters(base, CONFIG, 0), 0.3)
    adapters.save(policy, CONFIG, tmp_path / "adapter")
    read = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(logp(read.get_base_model()), logp(policy), rtol=0, atol=1e-6)


def test_the_initial_adapters_depend_on_the_seed(base: nn.Module) -> None:
    first, again, other = (adapters.policy_parameters(adapters.with_adapters(base, CONFIG, seed)) for seed in (1, 1, 2))
    assert all(first[name].equal(again[name]) for name in first)
    assert any(not first[name].equal(other[name]) for name in first)
