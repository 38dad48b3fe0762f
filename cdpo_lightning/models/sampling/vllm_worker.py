"""A process that reads a request, samples with vLLM, writes the answer and ends, which frees the GPU's memory.

    python vllm_worker.py REQUEST.json ANSWER.json

It is run by its path and imports nothing of this package, so that no import of ours comes before vLLM's own.
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


def generate(request: dict[str, Any]) -> list[list[list[int]]]:
    """Return the tokens of `samples` responses to each of `prompts` (token ids), the stop id included, at temperature 1."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=request["folder"],
        dtype=request["dtype"],
        max_model_len=request["length"],
        gpu_memory_utilization=request["gpu_memory"],
        skip_tokenizer_init=True,
        generation_config="vllm",  # not the model's own settings: temperature 1, no top-p
    )
    parameters = [
        SamplingParams(
            n=request["samples"],
            temperature=1.0,
            top_p=1.0,
            max_tokens=request["max_new_tokens"],
            stop_token_ids=request["stops"],
            detokenize=False,
            seed=seed,
        )
        for seed in request["seeds"]
    ]
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in request["prompts"]], parameters, use_tqdm=False)
    return [[[int(token) for token in one.token_ids] for one in output.outputs] for output in outputs]


def end_with_parent(parent: int) -> None:
    """Kill this process and its children as soon as its parent process has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    request_file, answer_file = map(Path, sys.argv[1:])
    answer = generate(json.loads(request_file.read_text(encoding="utf-8")))
    answer_file.write_text(json.dumps(answer), encoding="utf-8")
