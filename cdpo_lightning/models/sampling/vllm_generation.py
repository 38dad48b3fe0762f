"""Sampling by vLLM in a process of its own: the policy's weights go through a folder, the tokens come back.

Its samples are those of (seed, prompt), but not the ones that `generation.py` draws, and its kernels round differently: what a
sample's log-probability is, the policy itself has to say.
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
# What makes a process a rank, torchrun's own included: with it the other process would wait for a server that nobody started.
_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "NODE_RANK", "MASTER_", "TORCHELASTIC_")


def installed() -> bool:
    """Whether vLLM is there to be started."""
    return find_spec("vllm") is not None


@dataclass(frozen=True)
class VLLM:
    """Where weights and requests lie while it samples, in which type it computes, and its share of the GPU's memory."""

    folder: Path
    dtype: torch.dtype
    gpu_memory: float

    def __post_init__(self) -> None:
        if not installed():
            raise ModelError(
                "generation.engine=vllm: vllm is not installed; try: pip install 'cdpo-lightning[vllm]', or generation=torch"
            )

    def tokens(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], samples: int, max_new_tokens: int, eos: int, seed: int
    ) -> list[list[tuple[int, ...]]]:
        """The tokens of `samples` responses to each prompt, the end token included where one ends. All ranks come here together.

        Raises:
            ModelError: the process failed.
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
                "eos": eos,
                "seeds": [_seed_of(seed, ids) for ids in prompts],
            }
            result = self._answered(request) if prompts else []
            ranks.barrier()
        finally:
            if ranks.is_first():
                shutil.rmtree(self.folder, ignore_errors=True)
        return [[_until(eos, ids) for ids in responses] for responses in result]

    def _answered(self, request: dict[str, Any]) -> list[list[list[int]]]:
        requested, answer = (self.folder / f"{name}-{ranks.rank()}.json" for name in ("request", "answer"))
        requested.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, str(_WORKER), str(requested), str(answer)]
        log = self.folder.parent / f"generation-{ranks.rank()}.log"
        with log.open("w", encoding="utf-8") as message:
            # A group of its own, which ends as a whole: vllm has children that hold the GPU's memory.
            process = subprocess.Popen(command, env=_environment(), stdout=message, stderr=message, start_new_session=True)
            try:
                status = process.wait()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if status:
            last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2] or "it said nothing"
            raise ModelError(
                f"generation.engine=vllm: its process ended with status {status} ({last}); see {log}. If it found no room for its "
                "cache, raise generation.gpu_memory, if the GPU was full, lower it; or resume with generation=torch"
            )
        result: list[list[list[int]]] = json.loads(answer.read_text(encoding="utf-8"))
        return result


def save_weights(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """The model with its adapters merged as an ordinary folder of weights in `dtype`; the copies lie in the host's memory."""
    plain: Any = merged(model)
    shutil.rmtree(folder, ignore_errors=True)
    with storage_errors(folder):
        folder.mkdir(parents=True)
        plain.save_pretrained(folder, state_dict={name: value.to("cpu", dtype) for name, value in plain.state_dict().items()})


def _environment() -> dict[str, str]:
    """This process's, with this rank's GPU alone and without what would make the other process a rank."""
    values = {name: value for name, value in os.environ.items() if not name.startswith(_OF_RANKS)}
    if torch.cuda.is_available():
        number, seen = torch.cuda.current_device(), os.environ.get("CUDA_VISIBLE_DEVICES")
        values["CUDA_VISIBLE_DEVICES"] = seen.split(",")[number] if seen else str(number)
    return values


def _seed_of(seed: int, prompt: Sequence[int]) -> int:
    digest = hashlib.blake2b(np.asarray([seed, *prompt], dtype=np.int64).tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _until(eos: int, tokens: list[int]) -> tuple[int, ...]:
    """The tokens up to the end token, which is kept."""
    return tuple(tokens[: tokens.index(eos) + 1] if eos in tokens else tokens)
