"""The configuration of DeepSpeed, and the skeleton that a dual round samples from. The arithmetic: tests/e2e/test_ranks.py."""

import pytest
import torch

from cdpo_lightning.config import TrainerConfig
from cdpo_lightning.models.lm.causal_lm import build
from cdpo_lightning.training.strategies.gathering import skeleton
from cdpo_lightning.training.strategies.zero import ZeroPrecision, deepspeed_config

SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stage_and_offload_follow_the_configuration(stage: int) -> None:
    plain = deepspeed_config(TrainerConfig(strategy=f"deepspeed_zero{stage}"))["zero_optimization"]
    assert plain["stage"] == stage
    assert not {key for key in plain if key.startswith("offload")}
    offload = deepspeed_config(TrainerConfig(strategy=f"deepspeed_zero{stage}", offload=True))["zero_optimization"]
    assert offload["offload_optimizer"]["device"] == "cpu"
    assert ("offload_param" in offload) == (stage == 3)


@pytest.mark.parametrize(
    ("precision", "bf16", "autocast"), [("32-true", False, False), ("bf16-mixed", False, True), ("bf16-true", True, False)]
)
def test_mixed_precision_leaves_the_weights_in_float32(precision: str, bf16: bool, autocast: bool) -> None:
    config = deepspeed_config(TrainerConfig(strategy="deepspeed_zero2", precision=precision))
    assert (config["bf16"]["enabled"], config["torch_autocast"]["enabled"]) == (bf16, autocast)


def test_a_batch_is_not_converted() -> None:
    batch = (torch.tensor([-200.25]), torch.tensor([3]))
    assert ZeroPrecision("bf16-true").convert_input(batch) is batch


def test_the_skeleton_is_empty_and_runs_with_the_weights_of_the_model() -> None:
    model = build(SIZES, 20, 0, 1, 0).eval()
    before, tokens = {n: p.clone() for n, p in model.named_parameters()}, torch.tensor([[1, 2, 3]])
    empty = skeleton(model)
    assert sum(p.numel() for p in empty.parameters()) == 0
    assert empty.get_input_embeddings().weight is empty.get_output_embeddings().weight, "tied as in the model"
    for mine, theirs in zip(empty.parameters(), model.parameters(), strict=True):
        mine.data = theirs.data
    with torch.no_grad():
        assert empty(input_ids=tokens).logits.equal(model(input_ids=tokens).logits)
    assert all(before[name].equal(p) for name, p in model.named_parameters())
