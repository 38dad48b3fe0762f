"""Times the DPO step on pair rows, with the reference pass; prints one JSON line.

    python benchmarks/pair_step.py --model HF_FOLDER --pairs pku_saferlhf_pairs.jsonl --num-pairs 64 --batch-size 8

`seconds` covers reference log-probabilities, encoding and training of one epoch, not loading; `--precomputed` leaves the reference
pass out of it. `flops_utilisation` compares the smallest number of operations (2 or 6 per parameter and token, none for the
embedding) with the rate of a large product in the same process, type and threads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import harness
import lightning as L
import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import nn

from cdpo_lightning.config import ConstraintConfig, PolicyConfig, TrainerConfig
from cdpo_lightning.constraints.build import make_constraints
from cdpo_lightning.constraints.constraint import DualState
from cdpo_lightning.data.pairs.objectives import LagrangianPreference
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.models.lm.layers import compiled
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.text.packing import TokenRow
from cdpo_lightning.training.data_modules.pair_data import PairDataModule
from cdpo_lightning.training.fit import quiet_lightning
from cdpo_lightning.training.modules.policy import PolicyModule
from cdpo_lightning.training.strategies import hardware_arguments


def table_of(pairs: harness.Pairs, reference_logp: torch.Tensor) -> PairTable:
    """Return the pairs with cost 1 for the first answer and 0 for the second: at lambda 1 the second is preferred."""
    count = len(pairs.rows)
    return PairTable(
        prompts=tuple(tuple(prompt) for prompt, _ in pairs.rows),
        responses=tuple(tuple(response) for _, responses in pairs.rows for response in responses),
        prompt_N=torch.arange(count).repeat_interleave(2),
        scores={"reward": torch.zeros(2 * count), "cost": torch.tensor([1.0, 0.0]).repeat(count)},
        reference_logp_N=reference_logp,
        pair_M2=torch.arange(2 * count).view(count, 2),
        draw_M=draws(count, 0),
    )


def reference_pass(model: nn.Module, rows: Sequence[TokenRow], args: argparse.Namespace) -> torch.Tensor:
    """Return log pi_ref of all responses, nats, [N]."""
    with compiled(model, args.compile, torch.device(args.device)):
        return response_logp_of_rows(model, rows, args.batch_size, args.precision)


def train(model: nn.Module, table: PairTable, args: argparse.Namespace) -> PairDataModule:
    """Train one epoch of DPO on the table; return the data module."""
    config = PolicyConfig(beta=0.1, labels="argmax", epochs=1, batch_size=args.batch_size, pairs_per_row=1, lr=1e-6, refresh=0)
    module = PolicyModule(model.requires_grad_(True), config)
    objective = LagrangianPreference(config.beta, config.labels, make_constraints(ConstraintConfig()))
    data = PairDataModule(table, config, objective, DualState(lam={"cost": 1.0}), seed=0)
    hardware_config = TrainerConfig(accelerator="gpu" if args.device == "cuda" else "cpu", precision=args.precision)
    with quiet_lightning():
        trainer = L.Trainer(
            **hardware_arguments(hardware_config, TorchCheckpointIO()),
            max_epochs=1,
            gradient_clip_val=config.gradient_clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with compiled(module, args.compile, torch.device(args.device)):
            trainer.fit(module, datamodule=data)
    return data


def main() -> None:
    """Load, time and report."""
    parser = harness.arguments(__doc__, pairs=64)
    parser.add_argument("--precomputed", action="store_true", help="do not count the reference pass")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the layers; with --warm its time is not counted")
    parser.add_argument("--warm", type=int, default=0, help="pairs of an unmeasured epoch before (GPU: kernels and allocator)")
    args = parser.parse_args()
    model, pairs = harness.load_model(args), harness.load_pairs(args)
    rate = harness.matrix_rate(args.device, args.precision)
    if args.warm:
        part = replace(pairs, rows=pairs.rows[: args.warm])
        train(model, table_of(part, reference_pass(model, part.rows, args)), args)
    harness.synchronize(args.device)
    start = time.perf_counter()
    with harness.profiled(args.profile):
        reference = reference_pass(model, pairs.rows, args)
        start = time.perf_counter() if args.precomputed else start
        data = train(model, table_of(pairs, reference), args)
    harness.synchronize(args.device)
    seconds = time.perf_counter() - start
    padded = sum(batch.rows.input_ids_BT.numel() for batch in data.train_dataloader())
    trunk, head = harness.trunk_and_head(model)
    floor = (6 if args.precomputed else 8) * (trunk * pairs.tokens + head * pairs.response_tokens)
    harness.report_pairs(
        "pair_step", args, seconds, pairs.tokens, padded, rate, floor, precompute=args.precomputed, compile=args.compile
    )


if __name__ == "__main__":
    main()
