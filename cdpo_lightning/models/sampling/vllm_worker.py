"""Samples with vLLM in a process of its own: reads a request, writes the answer, ends; the GPU's memory is free again.

    python vllm_worker.py REQUEST.json ANSWER.json

Run by its path and importing nothing of this package, so that nothing but vLLM decides how the process begins.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def answer(request: dict[str, Any]) -> list[list[list[int]]]:
    """The tokens of `samples` responses to each of `prompts` (token ids), the end token included, at temperature 1."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=request["folder"],
        dtype=request["dtype"],
        max_model_len=request["length"],
        gpu_memory_utilization=request["gpu_memory"],
        skip_tokenizer_init=True,
        generation_config="vllm",  # none of the model's own: temperature 1 and nothing cut off
    )
    requested = [
        SamplingParams(
            n=request["samples"],
            temperature=1.0,
            top_p=1.0,
            max_tokens=request["max_new_tokens"],
            stop_token_ids=[request["eos"]],
            detokenize=False,
            seed=seed,
        )
        for seed in request["seeds"]
    ]
    result = engine.generate([{"prompt_token_ids": ids} for ids in request["prompts"]], requested, use_tqdm=False)
    return [[[int(token) for token in one.token_ids] for one in output.outputs] for output in result]


def end_with(parent: int) -> None:
    """Ends this process and all that it has started when the one that asked is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    where, to = map(Path, sys.argv[1:])
    to.write_text(json.dumps(answer(json.loads(where.read_text(encoding="utf-8")))), encoding="utf-8")
