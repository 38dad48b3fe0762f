"""Our loss and its gradient against TRL's own DPOTrainer, on the same eight pairs and weights."""

import copy
import random
from types import SimpleNamespace

import pytest
import torch

from cdpo_lightning.config import PolicyConfig
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.text.packing import pack
from cdpo_lightning.training.data_modules.pair_data import PolicyBatch
from cdpo_lightning.training.modules.policy import PolicyModule

pytestmark = pytest.mark.slow

WORDS = [f"w{i}" for i in range(40)]
BETA = 0.2


def texts(seed):
    """Eight (prompt, chosen, rejected) of different lengths."""
    draw = random.Random(seed)

    def text(low, high):
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    return [(text(2, 7), text(1, 9), text(1, 9)) for _ in range(8)]


def model_of(tokenizer, seed):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return build(sizes, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, seed)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def trl_result(tokenizer, policy, reference, pairs, folder):
    """TRL's loss and gradient of one batch of all pairs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": p, "chosen": " " + c, "rejected": " " + r} for p, c, r in pairs]
    config = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        beta=BETA,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=policy, ref_model=reference, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    policy.eval()
    loss = trainer.compute_loss(policy, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    return loss.item(), gradients(policy)


def our_result(tokenizer, policy, reference, pairs):
    """Ours, the rejected answer first in the row."""

    def ids(text):
        return tokenizer(text)["input_ids"]

    rows = [(ids(p), [[*ids(r), tokenizer.eos_token_id], [*ids(c), tokenizer.eos_token_id]]) for p, c, r in pairs]
    batch = PolicyBatch(
        rows=pack(rows),
        reference_logp=response_logp_of_rows(reference, rows, 8, "32-true").float(),
        pair=torch.arange(2 * len(rows)).view(-1, 2),
        target=torch.ones(len(rows)),
        temperature=BETA,
    )
    module = PolicyModule(policy, PolicyConfig(beta=BETA))
    module._trainer = SimpleNamespace(global_step=1, precision="32-true", log_every_n_steps=10)
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss.item(), gradients(policy)


@pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own
def test_loss_and_gradient_are_trls(tmp_path):
    tokenizer = word_tokenizer(WORDS)
    policy, reference = model_of(tokenizer, 1), model_of(tokenizer, 0)
    pairs = texts(0)
    loss, gradient = our_result(tokenizer, copy.deepcopy(policy).eval(), reference.eval(), pairs)
    trl_loss, trl_gradient = trl_result(tokenizer, policy, reference, pairs, tmp_path)
    assert abs(trl_loss - 0.6931) > 1e-3  # policy and reference do differ
    assert loss == pytest.approx(trl_loss, rel=1e-4)
    for name, expected in trl_gradient.items():
        torch.testing.assert_close(gradient[name], expected, rtol=1e-4, atol=1e-6, msg=name)
