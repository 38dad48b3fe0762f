"""Whole runs with adapters, beside weights as they are and in 4 bits: SFT, score models, C-DPO, evaluation, export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow
pytest.importorskip("peft", reason="the extra `lora` is not installed")

SMALL = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=17", "dataset.demonstrations_per_prompt=8",
    "dataset.scores=oracle", "model.architecture.hidden_size=32", "policy.epochs=3", "policy.batch_size=16",
    "policy.lr=1e-2", "constraint.samples_per_prompt=8", "constraint.c_limit=-0.3", "evaluation.samples_per_prompt=4",
    "method.baselines=[]", "trainer.num_threads=1", "model.lora_rank=4", "stages=[sft,reward,cost,policy,evaluate]",
]  # fmt: skip


def run(folder: Path, *overrides: str) -> dict[str, float]:
    places = [f"run_dir={folder / 'run'}", f"artifacts_dir={folder / 'store'}"]
    command = [sys.executable, str(ROOT / "run.py"), *SMALL, *places, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bitsandbytes" not in done.stderr, "quiet"
    result: dict[str, float] = json.loads((folder / "run/metrics.json").read_text(encoding="utf-8"))
    return result


@pytest.mark.parametrize("quantize", ["", "nf4"])
def test_a_whole_run_trains_the_adapters_and_exports_an_ordinary_model(tmp_path: Path, quantize: str) -> None:
    if quantize:
        pytest.importorskip("bitsandbytes", reason="the extra `qlora` is not installed")
    metrics = run(tmp_path, f"model.quantize={quantize}")
    assert metrics["eval/reference/kl_to_reference"] == pytest.approx(0, abs=1e-3)
    assert metrics["eval/cdpo/kl_to_reference"] > 0.01, "the policy has moved"
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run/export/cdpo")
    assert all(p.dtype == torch.float32 for p in exported.parameters())
    assert not any("lora" in name or "absmax" in name for name in load_file(tmp_path / "run/export/cdpo/model.safetensors"))
    again = run(tmp_path, f"model.quantize={quantize}", "resume=true")
    assert {k: v for k, v in again.items() if k.startswith("eval/")} == {k: v for k, v in metrics.items() if k.startswith("eval/")}


def test_a_method_of_two_stages_goes_on_from_its_first(tmp_path: Path) -> None:
    """Were it to begin anew, policy and reference would differ before the first step, and the run would stop."""
    metrics = run(tmp_path, "method=sacpo", "primal_dual.reward_epochs=2", "primal_dual.epochs=2", "stages=[policy,evaluate]")
    assert metrics["eval/sacpo/kl_to_reference"] > 0.01


def test_two_ranks_train_beside_four_bits_what_one_process_does(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `qlora` is not installed")
    weights = []
    for location, options in (
        ("one", []),
        ("ddp", ["trainer.devices=2", "trainer.strategy=ddp"]),
        ("zero2", ["trainer=deepspeed_cpu"]),
    ):
        (tmp_path / location).mkdir()
        # Untrained weights: one draw that rounding tips is another pair; larger steps amplify rounding.
        steady = ["policy.refresh=0", "policy.lr=1e-3", "policy.epochs=2"]
        run(tmp_path / location, "model.quantize=nf4", "stages=[policy]", *steady, *options)
        weights.append(load_file(tmp_path / location / "run/export/cdpo/model.safetensors"))
    one, *others = weights
    for other in others:
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-4)
