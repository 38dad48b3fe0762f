"""Low-rank adapters (LoRA, through peft): the weights of a model are frozen, and small matrices added to them are trained.

The reference is the model without adapters and shares its weights with the policy. So both agree exactly before the first step,
and together need the memory of one model.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdpo_lightning.config import ModelConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.adapters.quantized import dequantize_layer, is_quantized, is_quantized_layer, silence_bitsandbytes
from cdpo_lightning.streams import Stream, stream_seed

_ADAPTER = "lora_"  # part of the name of every parameter of an adapter


def with_adapters(model: nn.Module, config: ModelConfig, seed: int, share: bool = True) -> nn.Module:
    """Return a copy of the model with adapters: new ones, which do not change its output, or those that it already has.

    Everything except the adapters is frozen.

    Args:
        share: share the frozen weights with `model` in place of copying them.

    Raises:
        ModelError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise ModelError(f"model.lora_rank={config.lora_rank}: peft is not installed; try: pip install 'cdpo-lightning[lora]'")
    silence_bitsandbytes()
    from peft import inject_adapter_in_model

    shared = {id(p): p for name, p in model.named_parameters() if _ADAPTER not in name}
    adapted = copy.deepcopy(model, shared if share else None)
    if not has_adapters(model):  # a second stage continues with the adapters of the first
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, Stream.ADAPTERS))
            adapted = inject_adapter_in_model(_lora(config), adapted)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(_ADAPTER in name)
    return adapted


def _lora(config: ModelConfig) -> object:
    from peft import LoraConfig

    # No dropout: the log-ratio must compare weights, not random draws.
    return LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules="all-linear")


def has_adapters(model: nn.Module) -> bool:
    """Return whether the model has adapters."""
    return any(_ADAPTER in name for name, _ in model.named_parameters())


def policy_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters in which a policy differs from its reference: those of the adapters, or all if it has no adapters.

    Tied parameters are listed once.
    """
    every: dict[str, Tensor] = dict(model.named_parameters())
    return {name: value for name, value in every.items() if _ADAPTER in name} or every


def merged(model: nn.Module, onto: nn.Module | None = None) -> nn.Module:
    """Return an ordinary model with the same output: adapters merged, weights dequantised; `model` itself if it is ordinary.

    The ordinary model of a quantised one is in the host's memory.

    Args:
        onto: the model before it was quantised; the adapters are then added to its weights.
    """
    if not has_adapters(model) and not is_quantized(model):
        return model
    plain = copy.deepcopy(model)
    if is_quantized(model):
        plain = plain.to("cpu")  # in full precision it may not fit on the device
    for name, part in list(plain.named_modules()):
        if hasattr(part, "get_delta_weight"):
            layer = _merged_layer(part, onto.get_submodule(name) if onto else None)
        elif is_quantized_layer(part) and not name.endswith(".base_layer"):  # without an adapter
            layer = dequantize_layer(part)
        else:
            continue
        parent, _, own = name.rpartition(".")
        setattr(plain.get_submodule(parent), own, layer)
    for attribute in ("peft_config", "is_loaded_in_4bit"):
        vars(plain).pop(attribute, None)
    return plain


def _merged_layer(part: Any, onto: Any) -> nn.Module:
    """Return the layer with its adapter added to its weights."""
    base = part.get_base_layer()
    if not is_quantized_layer(base):
        part.merge()
        return base
    layer = dequantize_layer(base) if onto is None else copy.deepcopy(onto)
    (name,) = part.active_adapters
    with torch.no_grad():
        layer.weight += part.get_delta_weight(name).to(layer.weight)
    return layer


def save(model: nn.Module, config: ModelConfig, folder: Path) -> None:
    """Save the adapters alone in peft's format, for `PeftModel.from_pretrained(base, folder)`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    adapters = policy_parameters(model).items()
    tensors = {f"base_model.model.{n.replace('.default', '')}": p.detach().cpu().contiguous() for n, p in adapters}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    lora = _lora(config)
    lora.base_model_name_or_path = config.path  # type: ignore[attr-defined]
    lora.save_pretrained(str(folder))  # type: ignore[attr-defined]
