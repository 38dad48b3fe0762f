"""Memory estimates from the sizes of a model, compared with published counts and with real tensors."""

from dataclasses import replace

import pytest
import torch

from cdpo_lightning.config import ModelConfig, TrainerConfig
from cdpo_lightning.models.lm.causal_lm import build
from cdpo_lightning.models.lm.memory import activation_bytes, bytes_per_rank, shape_of
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.text.packing import pack

LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip


def test_llama_2_7b_has_6738415616_parameters_without_its_folder() -> None:
    """The published count, from the sizes in conf/model/llama2_7b.yaml: no weights, no network."""
    shape = shape_of(ModelConfig(path="./nowhere", architecture=LLAMA))
    assert shape is not None
    assert (shape.parameters, shape.trainable, shape.layers, shape.vocabulary) == (6_738_415_616, 6_738_415_616, 32, 32000)
    assert shape.embedding_parameters == 2 * 32000 * 4096


def test_a_model_of_unknown_sizes_has_no_shape() -> None:
    assert shape_of(ModelConfig(path="./nowhere", architecture=SMALL)) is None


def test_frozen_layers_are_not_counted_as_trainable() -> None:
    shape = shape_of(ModelConfig(architecture=SMALL, trainable_layers=1), 100)
    layer = 4 * 128 * 128 + 3 * 128 * 256 + 2 * 128
    assert shape is not None
    assert shape.trainable == layer + 128
    assert shape.parameters == 4 * layer + 128 + 100 * 128
    assert shape.embedding_parameters == 100 * 128  # embedding and head are tied


def test_only_the_adapters_are_counted_as_trainable() -> None:
    """Rank 64 on every linear layer of Llama-2-7B is 159,907,840 parameters, as QLoRA's authors count them."""
    config = ModelConfig(path="./nowhere", architecture=LLAMA, lora_rank=64)
    shape, small = shape_of(config), shape_of(replace(config, quantize="nf4"))
    assert shape is not None
    assert small is not None
    assert (shape.trainable, shape.parameters) == (159_907_840, 6_738_415_616 + 159_907_840)
    assert small.quantized == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    weights = [bytes_per_rank(each, TrainerConfig(), 0)["weights"] / 1e9 for each in (shape, small)]
    assert weights == pytest.approx([27.6, 5.0], abs=0.1)  # 3.3 GB in 4 bits, the rest float32


def test_the_bytes_of_each_stage_by_hand() -> None:
    """A million parameters, four ranks. DDP: 4 + (4 + 4) + 8 each; ZeRO shards the optimizer's 16, then gradients, then weights."""
    shape = replace(shape_of(ModelConfig(architecture=SMALL), 100), parameters=10**6, trainable=10**6)  # type: ignore[type-var]
    trainer = TrainerConfig(devices=4)
    megabytes = [{k: v / 1e6 for k, v in bytes_per_rank(shape, trainer, stage).items()} for stage in range(4)]
    assert megabytes == [
        {"weights": 4.0, "gradients": 8.0, "optimizer": 8.0},
        {"weights": 4.0, "gradients": 4.0, "optimizer": 4.0},
        {"weights": 4.0, "gradients": 5.0, "optimizer": 4.0},
        {"weights": 1.0, "gradients": 5.0, "optimizer": 4.0},
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("hidden", [128, 256])
def test_the_estimate_of_activations_is_near_the_saved_tensors(hidden: int, checkpointing: bool) -> None:
    """Every tensor saved for the backward pass is counted once.

    With checkpointing the estimate is up to a quarter too high; why is not known.
    """
    sizes = SMALL | {"hidden_size": hidden, "intermediate_size": 2 * hidden}
    model = build(sizes, 100, 0, 1, 0)
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    batch = pack([(range(1, 33), [range(1, 65), range(1, 65)])] * 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        response_logp(model, batch)
    counted, tokens = sum(storage.nbytes() for storage in kept.values()), batch.input_ids_BT.numel()
    shape = shape_of(ModelConfig(architecture=sizes), 100)
    assert shape is not None
    expected = activation_bytes(shape, tokens, "32-true", checkpointing)
    if checkpointing:  # without the layer that is run again, which is not kept
        one_less = replace(shape, layers=shape.layers - 1)
        expected -= activation_bytes(shape, tokens, "32-true", False) - activation_bytes(one_less, tokens, "32-true", False)
    assert counted == pytest.approx(expected, rel=0.25 if checkpointing else 0.15)
