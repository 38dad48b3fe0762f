"""Times TRL's DPOTrainer on a local model and pairs in the format of PKU-SafeRLHF; prints one JSON line.

    python benchmarks/trl_dpo.py --model HF_FOLDER --pairs pku_saferlhf_pairs.jsonl --num-pairs 64 --batch-size 8 [--precompute]

The safer response of a pair is the chosen one. bf16 weights, AdamW, max_length 512, no gradient checkpointing, else TRL's defaults.
`seconds` covers reference log-probabilities and training, not loading. Peak memory is the process's resident set, or the device's
peak allocation.
"""

import argparse
import json
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


def read_pairs(path: str, count: int) -> Dataset:
    with Path(path).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, count)]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row[f"response_{row['safer_response_id']}"]}],
                "rejected": [{"role": "assistant", "content": row[f"response_{1 - row['safer_response_id']}"]}],
            }
            for row in rows
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--num-pairs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precompute", action="store_true")
    args = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=args.batch_size,
        max_steps=args.num_pairs // args.batch_size,
        learning_rate=1e-6,
        beta=0.1,
        bf16=True,
        use_cpu=not on_gpu,
        precompute_ref_log_probs=args.precompute,
        gradient_checkpointing=False,
        max_length=512,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    start = time.perf_counter()
    trainer = DPOTrainer(model=model, args=config, train_dataset=read_pairs(args.pairs, args.num_pairs), processing_class=tokenizer)
    trainer.train()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "who": "trl",
                "precompute": args.precompute,
                "pairs": args.num_pairs,
                "batch_size": args.batch_size,
                "seconds": seconds,
                "pairs_per_second": args.num_pairs / seconds,
                "peak_memory_gb": peak / 1e9,
            }
        )
    )


if __name__ == "__main__":
    main()
