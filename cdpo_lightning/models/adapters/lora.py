"""Low-rank adapters (LoRA, through peft): the weights of a model stay, small matrices beside them are trained.

The reference is the model itself, adapters off: it shares its weights with the policy, so they agree exactly before the first step
and take the memory of one model.
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
from cdpo_lightning.models.adapters.quantized import is_packed, is_quantized, opened, quiet_bitsandbytes
from cdpo_lightning.streams import Stream, stream_seed

_MARK = "lora_"  # in the name of every parameter of an adapter


def with_adapters(model: nn.Module, config: ModelConfig, seed: int, share: bool = True) -> nn.Module:
    """A copy with adapters, which change nothing yet, or with the model's own if it has any; all else is frozen, and shared with
    `model` unless told otherwise.

    Raises:
        ModelError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise ModelError(f"model.lora_rank={config.lora_rank}: peft is not installed; try: pip install 'cdpo-lightning[lora]'")
    quiet_bitsandbytes()
    from peft import inject_adapter_in_model

    shared = {id(p): p for name, p in model.named_parameters() if _MARK not in name}
    adapted = copy.deepcopy(model, shared if share else None)
    if not are_in(model):  # a second stage goes on with the first one's
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, Stream.ADAPTERS))
            adapted = inject_adapter_in_model(_lora(config), adapted)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(_MARK in name)
    return adapted


def _lora(config: ModelConfig) -> object:
    from peft import LoraConfig

    # No dropout: the log-ratio compares weights and not draws.
    return LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules="all-linear")


def are_in(model: nn.Module) -> bool:
    """Whether the model has adapters."""
    return any(_MARK in name for name, _ in model.named_parameters())


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that tell the policy from its reference: the adapters', or all of a model without any; tied ones once."""
    every: dict[str, Tensor] = dict(model.named_parameters())
    return {name: value for name, value in every.items() if _MARK in name} or every


def merged(model: nn.Module, onto: nn.Module | None = None) -> nn.Module:
    """An ordinary model that computes what `model` computes with its adapters; `model` itself if it is one.

    Out of a quantised one, with adapters or without, it lies in the memory of the host.

    Args:
        onto: of a quantised model, its weights before they were: what was learned is added to those.
    """
    if not are_in(model) and not is_quantized(model):
        return model
    plain = copy.deepcopy(model)
    if is_quantized(model):
        plain = plain.to("cpu")  # in full precision it may not fit where it was trained
    for name, part in list(plain.named_modules()):
        if hasattr(part, "get_delta_weight"):
            layer = _merged_layer(part, onto.get_submodule(name) if onto else None)
        elif is_packed(part) and not name.endswith(".base_layer"):  # without an adapter
            layer = opened(part)
        else:
            continue
        parent, _, own = name.rpartition(".")
        setattr(plain.get_submodule(parent), own, layer)
    for mark in ("peft_config", "is_loaded_in_4bit"):
        vars(plain).pop(mark, None)
    return plain


def _merged_layer(part: Any, onto: Any) -> nn.Module:
    """The layer with its adapter added to its weights."""
    base = part.get_base_layer()
    if not is_packed(base):
        part.merge()
        return base
    layer = opened(base) if onto is None else copy.deepcopy(onto)
    (name,) = part.active_adapters
    with torch.no_grad():
        layer.weight += part.get_delta_weight(name).to(layer.weight)
    return layer


def save(model: nn.Module, config: ModelConfig, folder: Path) -> None:
    """The adapters alone, as peft reads them: `PeftModel.from_pretrained(base, folder)`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tensors = {f"base_model.model.{n.replace('.default', '')}": p.detach().cpu().contiguous() for n, p in learned(model).items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    lora = _lora(config)
    lora.base_model_name_or_path = config.path  # type: ignore[attr-defined]
    lora.save_pretrained(str(folder))  # type: ignore[attr-defined]
