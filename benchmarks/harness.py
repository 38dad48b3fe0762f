"""Functions that the benchmarks share: arguments, the model, pairs as token rows, the matrix rate, peak memory, the JSON line."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cdpo_lightning.config import ModelConfig
from cdpo_lightning.models.kernels import attention
from cdpo_lightning.models.kernels.float32_products import multiply_in_float32
from cdpo_lightning.models.kernels.products import faster_in_float32
from cdpo_lightning.models.lm import causal_lm
from cdpo_lightning.models.lm.packed_forward import compute_type
from cdpo_lightning.text.packing import TokenRow, row_length
from cdpo_lightning.text.templates import Encoder

SHAPES: dict[str, dict[str, Any]] = {
    "llama2_7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "smollm2_135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 1024,
        "tie_word_embeddings": True,
    },
}
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}


def arguments(text: str | None, pairs: int) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks; `pairs` is the default of `--num-pairs`."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hugging Face folder")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape instead; needs no tokenizer")
    parser.add_argument("--pairs", type=Path, help="JSONL with prompt, response_0, response_1, safer_response_id")
    parser.add_argument("--num-pairs", type=int, default=pairs)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="bf16-true", choices=sorted(DTYPES))
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flex_attention"])
    parser.add_argument("--profile", action="store_true", help="a table of operations on stderr (slower: not for the figures)")
    parser.add_argument("--min-tokens", type=int, default=0, help="only pairs of at least so many tokens (prompt and both answers)")
    parser.add_argument("--lengths", type=int, nargs=2, default=(64, 256), help="with --shape: tokens of a prompt and an answer")
    return parser


@dataclass(frozen=True)
class Pairs:
    """Token rows of one prompt and two responses; the safer one is the second."""

    rows: list[TokenRow]
    eos: int
    texts: list[tuple[str, str, str]]

    @property
    def tokens(self) -> int:
        """Return the number of real tokens of all rows, each prompt counted once."""
        return sum(row_length(*row) for row in self.rows)

    @property
    def response_tokens(self) -> int:
        """Return the number of tokens that are predicted."""
        return sum(len(response) for _, responses in self.rows for response in responses)


def load_model(args: argparse.Namespace) -> nn.Module:
    """Return the model of `--model` or `--shape` on the device, its weights in the precision's type."""
    if args.model:
        model = causal_lm.load(ModelConfig(path=args.model, attention=args.attention))
    else:
        with torch.device(args.device):
            config = LlamaConfig(**SHAPES[args.shape], max_position_embeddings=4096, attn_implementation="sdpa")
            model = LlamaForCausalLM(config).eval()
        if args.attention == "flex_attention":
            attention.use_attention(model, attention.BLOCK_ATTENTION)
    if compute_type(args.precision) == torch.bfloat16:
        multiply_in_float32(model, torch.device(args.device))
    return model.to(args.device, DTYPES[args.precision])


def load_pairs(args: argparse.Namespace) -> Pairs:
    """Return the first `--num-pairs` pairs of the file that are long enough; random tokens of `--lengths` for a shape."""
    if not args.model:
        prompt, answer = args.lengths
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(3, SHAPES[args.shape]["vocab_size"], (args.num_pairs, prompt + 2 * answer), generator=draw).tolist()
        return Pairs([(i[:prompt], [i[prompt : prompt + answer], i[prompt + answer :]]) for i in ids], 2, [])
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    encoder = Encoder(tokenizer, "chat" if tokenizer.chat_template else "plain", 512, 512)
    rows, texts = [], []
    with args.pairs.open(encoding="utf-8") as file:
        for line in file:
            result = json.loads(line)
            safer = result["safer_response_id"]
            text = (result["prompt"], result[f"response_{1 - safer}"], result[f"response_{safer}"])
            row = (encoder.prompt(text[0]), [encoder.response(answer) for answer in text[1:]])
            if row_length(*row) >= args.min_tokens:
                rows.append(row)
                texts.append(text)
    if len(rows) < args.num_pairs:
        pairs = f"{args.pairs}: {len(rows)} pairs of at least {args.min_tokens} tokens"
        raise SystemExit(f"{pairs}, expected {args.num_pairs}; give a file with more of them, or a smaller --num-pairs")
    return Pairs(list(islice(rows, args.num_pairs)), encoder.end, list(islice(texts, args.num_pairs)))


def matrix_rate(device: str, precision: str, size: int = 2048, repeats: int = 8) -> float:
    """Return the operations per second of one large product [2 size, size] @ [size, size], the hardware's practical limit.

    The factors have the type of the precision's products, or float32 if the device multiplies bf16 numbers in float32.
    """
    dtype = torch.float32 if faster_in_float32(torch.device(device)) else compute_type(precision)
    size = 4 * size if device == "cuda" else size
    a, b = (torch.randn(n, size, device=device, dtype=dtype) for n in (2 * size, size))
    for _ in range(3):
        a @ b
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    synchronize(device)
    return repeats * 4 * size**3 / (time.perf_counter() - start)


def synchronize(device: str) -> None:
    """Wait until the device has finished all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory_gb(device: str) -> float:
    """Return the peak of the device's allocator, or of the process's resident set, GB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def trunk_and_head(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of parameters that every token is multiplied with, and that only predicted tokens are (the head)."""
    embedding: Any = model.get_input_embeddings()
    return sum(p.numel() for n, p in model.base_model.named_parameters() if p is not embedding.weight), embedding.weight.numel()


@contextmanager
def profiled(on: bool) -> Iterator[None]:
    """Print, if `on`, a table on stderr of the operations inside the block with the most time of their own."""
    if not on:
        yield
        return
    with torch.profiler.profile() as profiler:
        yield
    events = sorted(profiler.key_averages(), key=_own_microseconds, reverse=True)
    total = sum(map(_own_microseconds, events)) or 1.0
    for event in events[:25]:
        own = _own_microseconds(event)
        print(f"{own / 1e6:9.2f} s {own / total:6.1%} {event.count:8,} x {event.key}", file=sys.stderr)


def _own_microseconds(event: Any) -> float:
    return event.self_device_time_total or event.self_cpu_time_total


def report(**fields: object) -> None:
    """Print one JSON line."""
    print(json.dumps(fields), flush=True)


def report_pairs(
    who: str, args: argparse.Namespace, seconds: float, tokens: int, padded: int, rate: float, floor: float, **more: object
) -> None:
    """Print the JSON line of a benchmark on pairs; `floor` is a number of operations, `rate` is in operations per second."""
    report(
        who=who,
        **more,
        pairs=args.num_pairs,
        batch_size=args.batch_size,
        seconds=seconds,
        pairs_per_second=args.num_pairs / seconds,
        peak_memory_gb=peak_memory_gb(args.device),
        precision=args.precision,
        tokens=tokens,
        padding_waste=padded / tokens - 1,
        matrix_gflops=rate / 1e9,
        floor_seconds=floor / rate,
        flops_utilisation=floor / rate / seconds,
    )
