"""Compares the pre-flight's estimate of memory with the measured peak of a rank: three sizes, ZeRO-1 and 3, two CPU ranks.

    python benchmarks/memory.py            prints a table in Markdown

The peak is that of the process in steps and dual rounds. The values of a run with a tiny model are subtracted from both, because a
process needs memory without a model too. The run has one dual round, in which ZeRO-3 gathers the model. glibc is set to return
freed blocks at once, so that they are not counted, as on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from cdpo_lightning.config import ModelConfig, TrainerConfig
from cdpo_lightning.models.lm.memory import activation_bytes, bytes_per_rank, shape_of

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 124  # words of the closed-form world
ROWS, PAIRS = 8, 2  # rows of a batch, pairs in a row
FIXED = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=4", "dataset.scores=oracle", "policy.epochs=1",
    f"policy.batch_size={ROWS * PAIRS}", f"policy.pairs_per_row={PAIRS}", "policy.refresh=0", "constraint.samples_per_prompt=2",
    "method.baselines=[]", "stages=[policy]", "trainer=deepspeed_cpu", "trainer.num_threads=1",
]  # fmt: skip
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
SIZES = (256, 384, 512)  # hidden size, eight layers


def architecture(hidden: int) -> dict[str, int]:
    """Return the sizes of the model with this hidden size."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
    }


def measured(hidden: int, stage: int) -> float:
    """Return the measured peak of the rank that uses most memory, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"model.architecture.{name}={size}" for name, size in architecture(hidden).items()]
        folders = [f"run_dir={folder}/run", f"artifacts_dir={folder}/store", f"trainer.strategy=deepspeed_zero{stage}"]
        command = [sys.executable, str(ROOT / "run.py"), *FIXED, *sizes, *folders]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT), **GIVE_BACK}, stdout=subprocess.DEVNULL)
        metrics = json.loads((Path(folder) / "run/metrics.json").read_text(encoding="utf-8"))
    return float(metrics["speed/peak_memory_gb"]) * 1e9


def estimated(hidden: int, stage: int) -> float:
    """Return the estimate of that peak, bytes: the trained model, the reference, and with ZeRO-3 the gathered model."""
    shape = shape_of(ModelConfig(architecture=architecture(hidden)), VOCABULARY)
    assert shape is not None
    trainer = replace(TrainerConfig(), devices=2, strategy=f"deepspeed_zero{stage}")
    tokens = ROWS // 2 * (6 + 2 * PAIRS * 8)
    held, gathered = sum(bytes_per_rank(shape, trainer, stage).values()), 4 * shape.parameters if stage == 3 else 0
    return held + activation_bytes(shape, tokens, "32-true", False) + 4 * shape.parameters + gathered


def main() -> None:
    """Print the table."""
    print("| hidden | stage | estimated GB | measured GB | ratio |\n|---:|---|---:|---:|---:|")
    for stage in (1, 3):
        empty, nothing = measured(16, stage), estimated(16, stage)
        for hidden in SIZES:
            guess, result = estimated(hidden, stage) - nothing, measured(hidden, stage) - empty
            print(f"| {hidden} | ZeRO-{stage} | {guess / 1e9:.3f} | {result / 1e9:.3f} | {guess / result:.2f} |", flush=True)


if __name__ == "__main__":
    main()
