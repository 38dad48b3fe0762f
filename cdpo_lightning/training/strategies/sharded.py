"""Checkpoints of sharded training that any number of ranks can read: unsharded parameters by name, each written by one rank.

A checkpoint is a folder. `shard-N.safetensors`, one per rank, holds float32 weights and the moments of the optimizer; `state.ckpt`
the rest of Lightning's checkpoint (loops, schedule, callbacks, data module). DeepSpeed's own files depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cdpo_lightning import compat, ranks
from cdpo_lightning.errors import StorageError

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
_STATE = "state.ckpt"


def is_whole(folder: Path) -> bool:
    """Return whether the folder is a checkpoint of this kind. It is renamed last, so it is complete if it exists."""
    return (folder / _STATE).is_file()


def write(folder: Path, engine: Any, state: dict[str, Any]) -> None:
    """Write this rank's share of the parameters and moments, gathered one by one; rank 0 also writes the rest."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if _steps(engine):
        compat.link_optimizer_states(engine.optimizer)
    own: dict[str, Tensor] = {}
    for number, (name, parameter) in enumerate(_trained(engine)):
        values = {name: safe_get_full_fp32_param(parameter)}
        if _steps(engine):
            values |= {f"{name}/{key}": safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
        if number % ranks.world_size() == ranks.rank():
            own |= {key: value.detach().to("cpu", torch.float32, copy=True).contiguous() for key, value in values.items()}
    save_file(own, folder / f"shard-{ranks.rank()}.safetensors")
    if ranks.is_first():
        progress = {"optimizer_step": _steps(engine), "lr": [group["lr"] for group in engine.optimizer.param_groups]}
        torch.save({**state, **progress}, folder / _STATE)


def read(folder: Path, engine: Any) -> dict[str, Any]:
    """Restore parameters and moments, with any number of ranks; return the `state` that `write` was called with.

    Raises:
        StorageError: a parameter is missing.
    """
    state: dict[str, Any] = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    file_of = {key: file for file in sorted(folder.glob("shard-*.safetensors")) for key in _keys(file)}
    for group, lr in zip(engine.optimizer.param_groups, state["lr"], strict=True):
        group["lr"] = lr  # the schedule sets it only after its next step
    steps = int(state["optimizer_step"])
    if steps:
        _make_moments(engine, steps)
    for name, parameter in _trained(engine):
        keys = {name: None} | ({f"{name}/{key}": key for key in _MOMENTS} if steps else {})
        for key, moment in keys.items():
            if key not in file_of:
                raise StorageError(f"{folder}: has no {key}; remove it and add resume=true: the stage then starts again")
            _set(parameter, _read(file_of[key], key).to(parameter.device), moment)
    return state


def _set(parameter: Any, value: Tensor, moment: str | None) -> None:
    """Copy this rank's part of `value` to the optimizer; weights also to the copy that the model computes with."""
    from deepspeed import utils

    if not hasattr(parameter, "ds_id"):  # ZeRO-1 and 2
        if moment is None:
            utils.safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, moment)
        return
    size = parameter.ds_tensor.ds_numel  # padded on the last ranks, where DeepSpeed's setter of full values fails
    padded = torch.nn.functional.pad(value.flatten(), (0, size * ranks.world_size() - value.numel()))
    own = padded.narrow(0, size * ranks.rank(), size)
    if moment is None:
        utils.safe_set_local_fp32_param(parameter, own)
        parameter.ds_tensor.data.copy_(own)
        if parameter.data.numel() == value.numel():  # a small parameter, of which every rank keeps a full copy
            parameter.data.copy_(value)
    else:
        utils.safe_set_local_optimizer_state(parameter, own, moment)


def _steps(engine: Any) -> int:
    """Return the number of steps that the optimizer has taken."""
    states = engine.optimizer.optimizer.state.values()
    return max((int(state["step"]) for state in states if "step" in state), default=0)


def _trained(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _keys(file: Path) -> list[str]:
    with safe_open(file, "pt") as reader:
        return list(reader.keys())


def _read(file: Path, key: str) -> Tensor:
    with safe_open(file, "pt") as reader:
        return reader.get_tensor(key)


def _make_moments(engine: Any, steps: int) -> None:
    """Create the state of the optimizer, as after `steps` steps but zero: otherwise the first step creates it."""
    sharded = engine.optimizer
    # ZeRO-3 puts one partition at a time into the groups.
    grouped = [flat for group in sharded.optimizer.param_groups for flat in group["params"]]
    for flat in getattr(sharded, "fp32_partitioned_groups_flat", grouped):
        _fill(sharded.optimizer.state[flat], flat, steps)
    compat.link_optimizer_states(sharded)


def _fill(state: dict[str, Any], flat: Tensor, steps: int) -> None:
    state["step"] = torch.tensor(float(steps))
    for key in _MOMENTS:
        state[key] = torch.zeros_like(flat, requires_grad=False)
