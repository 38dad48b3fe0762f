"""Every use of a private attribute of another library, one small function for each.

Nothing private of another library is used elsewhere in the package or in `hydra_plugins`; `tests/test_compat.py` checks it. Each
function says in which version the attribute was read and why no public one serves. After an update of a library, read this file.

Private methods that a class of ours overrides cannot move here. They are, with the version they were read in:

* `_init_config_if_needed` of Lightning 2.6.6's DeepSpeedStrategy, in `training/strategies/zero.py`: it overwrites a given
  configuration with values of its own; there is no argument against it.
* `_setup_model_and_optimizer` of the same class: it passes the index of a GPU to DeepSpeed, also on a machine without one.
* `_get_process_group_backend` and `_process_group_backend` of Lightning 2.6.6's DDPStrategy, which `setup_distributed` of the same
  file has to call and to set: the public `setup_distributed` would open the connection a second time.

Libraries are imported inside the functions, so that a caller of one function does not load all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from torch import nn

# Private names of a base class that a class of ours overrides, calls or sets on itself.
OVERRIDDEN = frozenset(
    {"_get_process_group_backend", "_init_config_if_needed", "_process_group_backend", "_setup_model_and_optimizer"}
)


def processor_has_amx() -> bool:
    """Return whether the processor has AMX, its matrix units for bf16.

    torch 2.13: `torch.cpu.get_capabilities` is public there, but setup.cfg allows older releases.
    """
    import torch

    return torch.cpu._is_amx_tile_supported()


def cpu_flash_attention() -> Any:
    """Return the operator that computes `scaled_dot_product_attention` on a processor, to name it in a checkpointing policy.

    torch 2.13: a policy of selective checkpointing takes operators, and this one has no public name.
    """
    import torch

    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    """Return what `module.compile()` has made, None if the module is not compiled.

    torch 2.13: no public method returns or undoes the result of `Module.compile`.
    """
    call: Callable[..., Any] | None = module._compiled_call_impl
    return call


def set_compiled_call(module: nn.Module, call: Callable[..., Any] | None) -> None:
    """Make the module run `call`, a result of `compiled_call`; None: run it uncompiled.

    torch 2.13: see `compiled_call`.
    """
    module._compiled_call_impl = call


def recompute_elementwise(enabled: bool) -> AbstractContextManager[Any]:
    """Return a context in which compiled layers compute elementwise results again in the backward pass, if `enabled`.

    torch 2.13: the setting exists in `torch._functorch.config` only.
    """
    from torch._functorch import config

    context: AbstractContextManager[Any] = config.patch(aggressive_recomputation=enabled)
    return context


def replace_parameters(module: nn.Module, replacement: Mapping[int, nn.Parameter]) -> None:
    """Put `replacement[id(p)]` in the place of each parameter `p` of the module itself, submodules excluded.

    torch 2.13: `setattr` would do for the parameters, but DeepSpeed 0.19.8 leaves a dictionary of its own class in the module,
    which has to go as well.
    """
    module._parameters = {name: None if p is None else replacement[id(p)] for name, p in module._parameters.items()}


def disable_gradient_scaling(optimizer: Any) -> None:
    """Tell Lightning that the optimizer's step does not scale gradients, so that it clips them.

    torch 2.13 sets the attribute on every fused optimizer, and Lightning 2.6.6 then refuses to clip, whether there is a scaler or
    not.
    """
    optimizer._step_supports_amp_scaling = False


def attention_of(model: Any) -> str | None:
    """Return the name of the model's attention implementation, None if it has no configuration that names one.

    transformers 5.23: the configuration shows it under the private name only.
    """
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def can_set_attention(model: Any) -> bool:
    """Return whether the model takes any registered attention implementation.

    transformers 5.23: for other models `set_attn_implementation` only warns.
    """
    return bool(model._can_set_attn_implementation())


def set_attention(model: Any, name: str) -> None:
    """Set the model's attention implementation, a name registered with `AttentionInterface`.

    transformers 5.23: the public `set_attn_implementation` takes every name with `sdpa` in it for PyTorch's own, and raises where
    the class does not support that.
    """
    model.config._attn_implementation = name


def disable_gguf_progress_bar() -> None:
    """Turn off the progress bar of reading a GGUF file.

    transformers 5.23: this one does not obey `disable_progress_bar`.
    """
    from transformers import modeling_gguf_pytorch_utils as gguf

    gguf.tqdm = partial(gguf.tqdm, disable=True)


def accumulates_gradients(trainer: Any) -> bool:
    """Return whether the batch in progress ends without an optimizer step.

    Lightning 2.6.6: no public attribute shows it, and the rule has exceptions (the last batch of an epoch, several loaders).
    """
    return bool(trainer.fit_loop._should_accumulate())


def link_optimizer_states(optimizer: Any) -> None:
    """Let each parameter of a ZeRO-1 or ZeRO-2 optimizer reach its optimizer states; ZeRO-3 has no need of it.

    DeepSpeed 0.19.8 does so once, after the step of the first group, when the states of the other groups do not exist yet.
    """
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def trial_id(trial: Any) -> int:
    """Return the storage's number of an Optuna trial, by which `optuna.trial.Trial` opens it.

    optuna 5.0.0: the public `number` counts within a study and is another number.
    """
    return int(trial._trial_id)


def parse_hydra_arguments(arguments: Iterable[str]) -> argparse.Namespace:
    """Return the command line as Hydra parses it.

    hydra-core 1.3.8: the public API gives a job its configuration, and not where the configuration was read from.
    """
    from hydra._internal.utils import get_args_parser

    return get_args_parser().parse_args(list(arguments))
