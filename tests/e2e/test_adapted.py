"""Whole runs with low-rank adapters on float32 weights and on 4-bit weights: SFT, score models, C-DPO, evaluation, export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow
pytest.importorskip("peft", reason="the extra `lora` is not installed")

SMALL = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=17", "dataset.demonstrations_per_prompt=8",
    "dataset.scores=oracle", "model.architecture.hidden_size=32", "policy.epochs=3", "policy.batch_size=16",
    "policy.lr=1e-2", "constraint.samples_per_prompt=8", "constraint.c_limit=-0.3", "evaluation.samples_per_prompt=4",
    "method.baselines=[]", "trainer.num_threads=1", "model.lora_rank=4", "stages=[sft,reward,cost,policy,evaluate]",
]  # fmt: skip


Run = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def run(start: Callable[..., Any]) -> Run:
    """Run in a folder, in a process of its own; return metrics.json."""

    def ran(folder: Path, *overrides: str) -> dict[str, float]:
        process = start(folder, *SMALL, f"run_dir={folder / 'run'}", f"artifacts_dir={folder / 'store'}", *overrides)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "bitsandbytes" not in errors, "the library's own messages are silenced"
        return json.loads((folder / "run/metrics.json").read_text(encoding="utf-8"))

    return ran


@pytest.mark.parametrize("quantize", ["", "nf4"])
def test_a_whole_run_trains_the_adapters_and_exports_an_ordinary_model(run: Run, tmp_path: Path, quantize: str) -> None:
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


def test_the_second_stage_of_a_method_starts_from_the_policy_of_the_first(run: Run, tmp_path: Path) -> None:
    """From other weights, policy and reference would differ before the first step, and the run would stop."""
    metrics = run(tmp_path, "method=sacpo", "primal_dual.reward_epochs=2", "primal_dual.epochs=2", "stages=[policy,evaluate]")
    assert metrics["eval/sacpo/kl_to_reference"] > 0.01


def test_two_ranks_train_adapters_on_four_bits_as_one_process_does(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `qlora` is not installed")
    weights = []
    for location, options in (
        ("one", []),
        ("ddp", ["trainer.devices=2", "trainer.strategy=ddp"]),
        ("zero2", ["trainer=deepspeed_cpu"]),
    ):
        # No refresh: rounding may flip a sampled token, and then the pairs differ. Small steps do not amplify rounding.
        steady = ["policy.refresh=0", "policy.lr=1e-3", "policy.epochs=2"]
        run(tmp_path / location, "model.quantize=nf4", "stages=[policy]", *steady, *options)
        weights.append(load_file(tmp_path / location / "run/export/cdpo/model.safetensors"))
    one, *others = weights
    for other in others:
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-4)
