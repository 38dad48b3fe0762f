"""Sample with vLLM in a process of its own, which reads the policy's weights from a folder and returns tokens.

The samples depend on (seed, prompt) alone, but differ from those of `generation.py`, and vLLM's kernels round differently: the
log-probabilities of its samples have to be computed by the policy itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cdpo_lightning import ranks
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.adapters.lora import merged
from cdpo_lightning.store.files import storage_errors

_WORKER = Path(__file__).with_name("vllm_worker.py")
# The variables that make a process a rank, those of torchrun included: with them vLLM would wait for a server that does not exist.
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "NODE_RANK", "MASTER_", "TORCHELASTIC_")


def installed() -> bool:
    """Return whether vLLM is installed."""
    return find_spec("vllm") is not None


@dataclass(frozen=True)
class VLLM:
    """A sampler: its folder for weights and requests, the type that it computes in, and its share of the GPU's memory."""

    folder: Path
    dtype: torch.dtype
    gpu_memory: float

    def __post_init__(self) -> None:
        if not installed():
            raise ModelError(
                "generation.engine=vllm: vllm is not installed; try: pip install 'cdpo-lightning[vllm]', or generation=torch"
            )

    def tokens(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], samples: int, max_new_tokens: int, stops: Sequence[int], seed: int
    ) -> list[list[tuple[int, ...]]]:
        """Return the tokens of `samples` responses to each prompt, the stop id included if the response ended.

        All ranks must call it together.

        Raises:
            ModelError: vLLM's process failed.
        """
        weights = self.folder / "weights"
        try:
            if ranks.is_first():
                save_weights(model, weights, self.dtype)
            ranks.barrier()
            request = {
                "folder": str(weights),
                "dtype": str(self.dtype).removeprefix("torch."),
                "length": max((len(ids) for ids in prompts), default=0) + max_new_tokens,
                "gpu_memory": self.gpu_memory,
                "prompts": [list(ids) for ids in prompts],
                "samples": samples,
                "max_new_tokens": max_new_tokens,
                "stops": list(stops),
                "seeds": [_prompt_seed(seed, ids) for ids in prompts],
            }
            result = self._run_worker(request) if prompts else []
            ranks.barrier()
        finally:
            if ranks.is_first():
                shutil.rmtree(self.folder, ignore_errors=True)
        return [[_cut_after_stop(ids, stops) for ids in responses] for responses in result]

    def _run_worker(self, request: dict[str, Any]) -> list[list[list[int]]]:
        """Run `vllm_worker.py` on the request; return its answer."""
        request_file, answer = (self.folder / f"{name}-{ranks.rank()}.json" for name in ("request", "answer"))
        request_file.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, str(_WORKER), str(request_file), str(answer)]
        log = self.folder.parent / f"generation-{ranks.rank()}.log"
        with log.open("w", encoding="utf-8") as output:
            # A process group of its own, which is killed as a whole: vLLM has child processes that hold the GPU's memory.
            process = subprocess.Popen(command, env=_worker_environment(), stdout=output, stderr=output, start_new_session=True)
            try:
                status = process.wait()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if status:
            last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2] or "no output"
            raise ModelError(
                f"generation.engine=vllm: its process ended with status {status} ({last}); see {log}. If its cache did not fit, "
                "raise generation.gpu_memory; if the GPU was full, lower it; or resume with generation=torch"
            )
        result: list[list[list[int]]] = json.loads(answer.read_text(encoding="utf-8"))
        return result


def save_weights(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Save the model, adapters merged, as an ordinary Hugging Face folder in `dtype`; copies are made in the host's memory."""
    plain: Any = merged(model)
    shutil.rmtree(folder, ignore_errors=True)
    with storage_errors(folder):
        folder.mkdir(parents=True)
        plain.save_pretrained(folder, state_dict={name: value.to("cpu", dtype) for name, value in plain.state_dict().items()})


def _worker_environment() -> dict[str, str]:
    """Return this process's environment, with this rank's GPU as the only one and without the variables of a rank."""
    values = {name: value for name, value in os.environ.items() if not name.startswith(_RANK_VARIABLES)}
    if torch.cuda.is_available():
        index, visible = torch.cuda.current_device(), os.environ.get("CUDA_VISIBLE_DEVICES")
        values["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index] if visible else str(index)
    return values


def _prompt_seed(seed: int, prompt: Sequence[int]) -> int:
    """Return a seed of 32 bits that depends on the seed and the prompt."""
    digest = hashlib.blake2b(np.asarray([seed, *prompt], dtype=np.int64).tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _cut_after_stop(tokens: list[int], stops: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens up to the first stop id, which is kept."""
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tuple(tokens[: end + 1])
