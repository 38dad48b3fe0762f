"""Compares the time of our sampling with that of `model.generate`, on real prompts; prints one JSON line for each.

    python benchmarks/generate.py --model HF_FOLDER --pairs pku_saferlhf_pairs.jsonl --num-pairs 256 --batch-size 256

Our sampler runs in batches of `--batch-size`, `model.generate` in batches of 8 and of `--batch-size`, all at temperature 1, until
the end token or `--new-tokens`. Tokens after an end token are not counted. `--repeats` repeats all three in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import nn

from cdpo_lightning.models.sampling.generation import sample

Prompts = list[tuple[int, ...]]


def ours(model: nn.Module, prompts: Prompts, eos: int, args: argparse.Namespace) -> int:
    """Return the number of tokens sampled by this framework."""
    samples = sample(model, prompts, 1, args.new_tokens, (eos,), 0, args.batch_size)
    return sum(len(s.tokens) for s in samples)


@torch.no_grad()
def generate(model: Any, prompts: Prompts, eos: int, batch_size: int, args: argparse.Namespace) -> int:
    """Return the number of tokens sampled by `model.generate`, prompts in the file's order, padded on the left."""
    total = 0
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        width = max(map(len, part))
        ids = torch.tensor([[eos] * (width - len(p)) + list(p) for p in part], device=args.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=args.device)
        options: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        result = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=args.new_tokens, eos_token_id=eos, pad_token_id=eos, **options
        )[:, width:]
        for row in result.tolist():
            total += row.index(eos) + 1 if eos in row else len(row)
    return total


def main() -> None:
    """Load, time in turn and report."""
    parser = harness.arguments(__doc__, pairs=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only-ours", action="store_true")
    args = parser.parse_args()
    model, pairs = harness.load_model(args), harness.load_pairs(args)
    prompts: Prompts = [tuple(prompt) for prompt, _ in pairs.rows]
    rate = harness.matrix_rate(args.device, args.precision)
    trunk, head = harness.trunk_and_head(model)
    ways: dict[str, Callable[[], int]] = {"sample": lambda: ours(model, prompts, pairs.eos, args)}
    if not args.only_ours:
        ways["generate, batches of 8"] = lambda: generate(model, prompts, pairs.eos, 8, args)
        ways["generate, same batch"] = lambda: generate(model, prompts, pairs.eos, args.batch_size, args)
    for _ in range(args.repeats):
        for who, way in ways.items():
            harness.synchronize(args.device)
            start = time.perf_counter()
            tokens = way()
            harness.synchronize(args.device)
            seconds = time.perf_counter() - start
            floor = 2 * (trunk * (tokens + sum(map(len, prompts))) + head * tokens) / rate
            harness.report(
                who=who,
                pairs=len(prompts),
                batch_size=8 if who.endswith("of 8") else args.batch_size,
                seconds=seconds,
                tokens=tokens,
                tokens_per_second=tokens / seconds,
                peak_memory_gb=harness.peak_memory_gb(args.device),
                precision=args.precision,
                matrix_gflops=rate / 1e9,
                floor_seconds=floor,
                flops_utilisation=floor / seconds,
            )


if __name__ == "__main__":
    main()
