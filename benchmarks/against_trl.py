"""Compares our DPO step with TRL's: each in a process of its own, in turn, medians of `--repeats`; prints JSON lines.

    python benchmarks/against_trl.py --model HF_FOLDER --pairs pku_saferlhf_pairs.jsonl --num-pairs 64 --batch-size 8

TRL runs as `trl_dpo.py` sets it up (bf16 weights, its defaults otherwise), with the reference's log-probabilities in every step
("counted") and before the first ("precomputed"); ours in `--precision`. All three count them. The last line has the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def long_pairs(pairs: Path, model: str, count: int, low: int, high: int, folder: Path) -> Path:
    """Return a file with the first `count` pairs of `low` to `high` tokens in prompt and both answers, without template."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    path, kept = folder / "pairs.jsonl", []
    for line in pairs.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        tokens = sum(len(tokenizer(row[part])["input_ids"]) for part in ("prompt", "response_0", "response_1"))
        if low <= tokens <= high:
            kept.append(line)
    if len(kept) < count:
        raise SystemExit(f"{pairs}: {len(kept)} pairs of {low} to {high} tokens, expected {count}; give a file with more of them")
    path.write_text("\n".join(islice(kept, count)) + "\n", encoding="utf-8")
    return path


def measured(program: str, *options: str) -> dict[str, Any]:
    """Return the JSON line of one run of a program."""
    done = subprocess.run([sys.executable, str(HERE / program), *options], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"who"')]
    if done.returncode or not lines:
        raise SystemExit(f"{program} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    """Run both sides in turn and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--num-pairs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="bf16-true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--modes", nargs="+", default=["counted", "precomputed"], choices=["counted", "precomputed"])
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile, after a batch that is not counted")
    parser.add_argument("--long", type=int, nargs=2, metavar=("LOW", "HIGH"), help="only pairs of so many tokens in all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = long_pairs(args.pairs, args.model, args.num_pairs, *args.long, Path(folder)) if args.long else args.pairs
        common = ["--model", args.model, "--pairs", str(pairs), "--num-pairs", str(args.num_pairs)]
        common += ["--batch-size", str(args.batch_size)]
        own = [*common, "--precision", args.precision, "--device", args.device]
        own += ["--compile", "--warm", str(args.batch_size)] if args.compile else []
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(args.repeats):
            runs.setdefault("ours", []).append(measured("pair_step.py", *own))
            for mode in args.modes:
                trl = measured("trl_dpo.py", *common, *([] if mode == "counted" else ["--precompute"]))
                runs.setdefault(mode, []).append(trl)
    fields = ("seconds", "peak_memory_gb")
    median = {who: {k: statistics.median(r[k] for r in result) for k in fields} for who, result in runs.items()}
    summary: dict[str, Any] = {"who": "ratio", "pairs": args.num_pairs, "batch_size": args.batch_size, "precision": args.precision}
    for mode in args.modes:
        ours, trl = median["ours"], median[mode]
        summary[f"times_faster_{mode}"] = trl["seconds"] / ours["seconds"]
        summary[f"memory_share_{mode}"] = ours["peak_memory_gb"] / trl["peak_memory_gb"]
    print(json.dumps(summary | {"median": median}), flush=True)


if __name__ == "__main__":
    main()
