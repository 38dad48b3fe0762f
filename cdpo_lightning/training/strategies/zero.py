"""DeepSpeed's ZeRO under Lightning on any accelerator; gathers the sharded model for sampling, checkpoints and later stages.

Under `bf16-mixed` the weights stay float32 and only matrix products are bf16, so a step computes the same as in one process.
`bf16-true` is DeepSpeed's own bf16: weights in bf16, a float32 copy in the sharded optimizer.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.plugins import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from cdpo_lightning import compat
from cdpo_lightning.config import TrainerConfig
from cdpo_lightning.store.files import atomic_folder
from cdpo_lightning.training.strategies import sharded
from cdpo_lightning.training.strategies.gathering import gathered, runnable, skeleton


class ZeroPrecision(DeepSpeedPrecision):
    """Leaves batches in float32: in bf16 a reference log-probability of -200 nats is off by half a nat."""

    def convert_input(self, data: Any) -> Any:
        """Return `data` unchanged."""
        return data

    def backward(self, tensor: Tensor, model: L.LightningModule, optimizer: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Run the backward pass without dividing by the number of accumulated batches, as Lightning has done so."""
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)


def deepspeed_config(config: TrainerConfig) -> dict[str, Any]:
    """Return the configuration of DeepSpeed, without clipping and accumulation, which depend on the stage."""
    zero: dict[str, Any] = {"stage": config.zero, "contiguous_gradients": True, "overlap_comm": False}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.accelerator != "cpu"}
        if config.zero == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": config.accelerator != "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # only for DeepSpeed's statistics: our batches vary in length
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": config.precision == "bf16-true"},
        "torch_autocast": {"enabled": config.precision == "bf16-mixed", "dtype": "bfloat16"},
    }


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO-1, 2 or 3 among ranks that are already connected."""

    def __init__(self, config: TrainerConfig) -> None:
        super().__init__(
            config=deepspeed_config(config),
            precision_plugin=ZeroPrecision(config.precision),  # type: ignore[arg-type]
            logging_level=logging.ERROR,
        )
        self._by_layer = config.gather == "layer"
        self._skeletons: dict[nn.Module, nn.Module] = {}  # by network of the module
        self._own: dict[nn.Module, set[str]] = {}
        self._finished = False

    def setup_environment(self) -> None:
        """Skip Lightning's check for CUDA."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Make DeepSpeed use the existing process group."""
        import deepspeed

        self.set_world_ranks()
        self._process_group_backend = self._get_process_group_backend()
        deepspeed.init_distributed(self._process_group_backend, dist_init_required=False)

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Return False: Lightning steps at the last batch of an epoch, DeepSpeed would wait for the next epoch."""
        return False

    def _init_config_if_needed(self) -> None:
        assert self.lightning_module is not None
        assert isinstance(self.config, dict)
        trainer = self.lightning_module.trainer
        self.config["gradient_clipping"] = trainer.gradient_clip_val or 0.0
        self.config["gradient_accumulation_steps"] = trainer.accumulate_grad_batches

    def setup(self, trainer: L.Trainer) -> None:
        """Copy the structure of the networks, and record their attributes, before DeepSpeed adds its hooks."""
        module = trainer.lightning_module
        if self.zero_stage_3:
            self._skeletons = {network: skeleton(network) for network in module.children()}
        self._own = {part: set(vars(part)) for part in module.modules() if part is not module}
        super().setup(trainer)

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        """Initialize DeepSpeed as Lightning does, but without the index of a GPU where there is none."""
        import deepspeed

        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))  # required by DeepSpeed, also for one process
        engine, sharded, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, sharded

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Do nothing: `pre_backward` sets when gradients are reduced, and from ZeRO-2 on that must be at every batch."""
        yield

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Tell DeepSpeed whether this is the last batch before a step."""
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        self.deepspeed_engine.set_gradient_accumulation_boundary(not compat.accumulates_gradients(trainer))

    def on_train_end(self) -> None:
        """Record that the training has reached its end."""
        self._finished = True

    def teardown(self) -> None:
        """Turn the module back into an ordinary one with the trained parameters on every rank, if the training reached its end."""
        if self._finished:
            module: nn.Module = self.lightning_module  # type: ignore[assignment]
            weights = {id(p): self._ordinary(p) for p in module.parameters()}
            self.deepspeed_engine.destroy()
            for part, own in self._own.items():
                _restore(part, own, weights)
        super().teardown()

    def _ordinary(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return an ordinary copy of a parameter; the same object if frozen and unsharded, as the reference may share it."""
        if not self.zero_stage_3 and not parameter.requires_grad:
            return parameter
        with gathered([parameter]) if self.zero_stage_3 else nullcontext():
            return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return nothing: the shards hold the weights."""
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return nothing: the shards hold the state."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a folder of shards atomically."""
        with atomic_folder(Path(filepath)) as temporary:
            sharded.write(temporary, self.deepspeed_engine, checkpoint)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint that was written by any number of ranks."""
        return sharded.read(Path(checkpoint_path), self.deepspeed_engine)

    def whole_model(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Yield a network of the module that can run: gathered for the block, or layer by layer, as `trainer.gather` says."""
        if model not in self._skeletons:
            return nullcontext(model)
        return runnable(self._skeletons[model], model, self._by_layer)


def _restore(part: nn.Module, own: set[str], weights: dict[int, nn.Parameter]) -> None:
    """Replace DeepSpeed's parameters by ordinary ones, and delete the attributes that it has added to the module."""
    for name in vars(part).keys() - own:
        delattr(part, name)
    compat.replace_parameters(part, weights)
