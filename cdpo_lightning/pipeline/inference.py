"""Settings of forward passes without gradient (device, precision, batch size), and the memory that frozen models are kept in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdpo_lightning.config import RunConfig
from cdpo_lightning.models.lm.layers import compiled
from cdpo_lightning.models.lm.placement import offload
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.text.packing import TokenRow


@dataclass(frozen=True)
class Inference:
    """The settings of forward passes without gradient; they round as training does."""

    device: torch.device
    precision: str  # Lightning's name
    batch_size: int  # rows of one forward pass
    compile: bool
    offload: bool  # keep frozen models in the host's memory while they are not used

    def logp(self, model: nn.Module, rows: list[TokenRow]) -> Tensor:
        """Return log pi(y|x) of the rows' responses in order, nats, float64, [N]."""
        with compiled(model, self.compile, self.device):
            return response_logp_of_rows(model, rows, self.batch_size, self.precision)

    def keep(self, model: nn.Module) -> nn.Module:
        """Return the model in evaluation mode, on the device or, with `offload`, in the host's memory until it is used."""
        if self.offload:
            offload(model, self.device)
            return model.eval()
        return model.to(self.device).eval()


def make_inference(config: RunConfig) -> Inference:
    """Return the inference settings of a run on this machine."""
    trainer = config.trainer
    on_gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    return Inference(
        device=torch.device("cuda" if on_gpu else "cpu"),
        precision=trainer.precision,
        batch_size=trainer.inference_batch,
        compile=config.model.compile,
        offload=trainer.park_frozen,
    )
