"""With bf16 weights the batch stays as it is: float32 log-probabilities in frozen dataclasses."""

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from torch.utils.data import DataLoader

from cdpo_lightning.config import PolicyConfig, TrainerConfig
from cdpo_lightning.models.lm.causal_lm import build
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.text.packing import pack
from cdpo_lightning.training.data_modules.pair_data import PolicyBatch
from cdpo_lightning.training.modules.policy import PolicyModule
from cdpo_lightning.training.strategies import hardware_arguments

ROWS = [((3, 4), [(5, 6, 1), (7, 1)])]


# Lightning warns of it at every fit; `cdpo_lightning.training.fit` ignores the warning.
@pytest.mark.filterwarnings("ignore:The `srun` command is available")
def test_a_policy_trains_with_bf16_weights_on_a_float32_batch():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = build(sizes, 12, 0, 1, 0).to(torch.bfloat16)
    seen = []

    class Module(PolicyModule):
        def training_step(self, batch, number):
            seen.append((batch.reference_logp.dtype, next(self.model.parameters()).dtype))
            return super().training_step(batch, number)

    reference = response_logp_of_rows(model, ROWS, 4, "bf16-true").float()
    batch = PolicyBatch(pack(ROWS), reference, torch.tensor([[0, 1]]), torch.tensor([1.0]), temperature=0.1)
    chosen = hardware_arguments(TrainerConfig(precision="bf16-true"), TorchCheckpointIO())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(**chosen, max_epochs=1, log_every_n_steps=1, **quiet)
    trainer.fit(Module(model, PolicyConfig(lr=1e-2)), DataLoader([batch], batch_size=None, num_workers=0))
    assert seen == [(torch.float32, torch.bfloat16)]
