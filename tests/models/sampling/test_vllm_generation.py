"""Sampling in another process, with a stand-in for vLLM: its arguments, its answer, and what remains afterwards."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from cdpo_lightning.config import ModelConfig
from cdpo_lightning.errors import ModelError
from cdpo_lightning.evaluation.evaluator import PolicyEvaluator
from cdpo_lightning.models.adapters import lora as adapters
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.models.sampling import vllm_generation
from cdpo_lightning.models.sampling.vllm_generation import VLLM
from cdpo_lightning.text.templates import Encoder

SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
EOS = 1
ROOT = Path(__file__).resolve().parents[3]

# Loads the folder that it is given and samples from it, a prompt at a time, with the random numbers of the request's seed.
STAND_IN = """
import torch
from types import SimpleNamespace
from transformers import AutoModelForCausalLM


class SamplingParams:
    def __init__(self, n, temperature, top_p, max_tokens, stop_token_ids, detokenize, seed):
        assert (temperature, top_p, detokenize) == (1.0, 1.0, False)
        self.n, self.max_tokens, self.stop, self.seed = n, max_tokens, stop_token_ids, seed


class LLM:
    def __init__(self, model, dtype, max_model_len, gpu_memory_utilization, skip_tokenizer_init, generation_config):
        import os

        assert not [name for name in os.environ if name.startswith(("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_"))]
        if os.environ.get("STAND_IN_WAITS"):
            import time
            from pathlib import Path

            Path(os.environ["STAND_IN_WAITS"]).write_text(str(os.getpid()))
            time.sleep(600)
        assert skip_tokenizer_init and generation_config == "vllm" and 0 < gpu_memory_utilization < 1
        if gpu_memory_utilization > 0.9:
            raise ValueError("No available memory for the cache blocks")
        self.model, self.length = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)), max_model_len

    @torch.no_grad()
    def one(self, prompt, parameters, number):
        draw, ids = torch.Generator().manual_seed(parameters.seed + number), list(prompt)
        for _ in range(parameters.max_tokens):
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(int(torch.multinomial(logits.float().softmax(-1), 1, generator=draw)))
            if ids[-1] in parameters.stop:
                break
        assert len(ids) <= self.length
        return SimpleNamespace(token_ids=ids[len(prompt):])

    def generate(self, prompts, parameters, use_tqdm):
        return [
            SimpleNamespace(outputs=[self.one(p["prompt_token_ids"], s, i) for i in range(s.n)])
            for p, s in zip(prompts, parameters, strict=True)
        ]
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "vllm.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "0")
    return tmp_path


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer([f"w{i}" for i in range(17)])


@pytest.fixture
def model() -> nn.Module:
    return build(SIZES, 20, 0, EOS, 3).eval()


def evaluator(model: nn.Module, tokenizer: PreTrainedTokenizerFast, engine: VLLM | None) -> PolicyEvaluator:
    return PolicyEvaluator({}, model, Encoder(tokenizer, "plain", 16, 6), 4, 8, "32-true", engine)


@pytest.mark.slow
def test_samples_follow_the_policy_and_have_its_log_probabilities(
    stand_in: Path, model: nn.Module, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The frequency of each first token in 300 samples is its probability under the model."""
    policy_evaluator = evaluator(model, tokenizer, VLLM(stand_in / "generation", torch.float32, 0.4))
    samples, texts = policy_evaluator.draw(model, ["w3 w4", "w5"], 300, 0, policy_evaluator.encoder)
    assert [s.prompt for s in samples] == [0] * 300 + [1] * 300
    assert len(texts) == 600
    for number, prompt in enumerate(("w3 w4", "w5")):
        ids = policy_evaluator.encoder.prompt(prompt)
        with torch.no_grad():
            chance = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
        first = torch.tensor([s.tokens[0] for s in samples if s.prompt == number])
        seen = first.bincount(minlength=20) / 300
        assert ((seen - chance).abs() < 4 * (chance * (1 - chance) / 300).sqrt() + 1e-3).all()
    for sample in samples[:5]:
        row = policy_evaluator.encoder.prompt(("w3 w4", "w5")[sample.prompt]), [sample.tokens]
        assert sample.logp == pytest.approx(float(response_logp_of_rows(model, [row], 1, "32-true")), abs=1e-4)
    assert {s.finished for s in samples} == {True, False}
    assert all(s.finished == (s.tokens[-1] == EOS) and len(s.tokens) <= 6 for s in samples)
    again, _ = policy_evaluator.draw(model, ["w3 w4", "w5"], 300, 0, policy_evaluator.encoder)
    other, _ = policy_evaluator.draw(model, ["w3 w4", "w5"], 300, 1, policy_evaluator.encoder)
    assert again == samples
    assert other != samples
    assert not (stand_in / "generation").exists(), "weights and requests are removed"


@pytest.mark.slow
def test_adapters_are_merged_into_the_saved_weights(stand_in: Path, model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    policy = adapters.with_adapters(model, ModelConfig(architecture=SIZES, lora_rank=2), 0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    vllm = VLLM(stand_in / "generation", torch.float32, 0.4)
    prompts = [(3, 4), (5,)]
    own = vllm.tokens(policy, prompts, 8, 6, (EOS,), 0)
    assert own == vllm.tokens(adapters.merged(policy), prompts, 8, 6, (EOS,), 0)
    assert own != vllm.tokens(model, prompts, 8, 6, (EOS,), 0)
    assert vllm.tokens(policy, [], 8, 6, (EOS,), 0) == []


@pytest.mark.slow
def test_a_failed_process_is_reported_in_one_line_and_its_output_is_kept(stand_in: Path, model: nn.Module) -> None:
    vllm = VLLM(stand_in / "generation", torch.float32, 0.95)
    report = r"status 1 \(ValueError: No available memory .*\); see .*generation-0.log. If .* raise generation.gpu_memory"
    with pytest.raises(ModelError, match=report):
        vllm.tokens(model, [(3,)], 1, 2, (EOS,), 0)
    assert not (stand_in / "generation").exists()
    assert "Traceback" in (stand_in / "generation-0.log").read_text(encoding="utf-8")


WAITING = """
import sys, torch
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from cdpo_lightning.models.lm.causal_lm import build
from cdpo_lightning.models.sampling.vllm_generation import VLLM

VLLM(Path(sys.argv[1]) / "generation", torch.float32, 0.4).tokens(build({SIZES}, 20, 0, 1, 3), [(3,)], 1, 2, (1,), 0)
"""


@pytest.mark.slow
def test_it_ends_when_its_parent_process_ends(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = stand_in / "pid"
    monkeypatch.setenv("STAND_IN_WAITS", str(note))
    program = WAITING.replace("{SIZES}", repr(SIZES))
    parent = subprocess.Popen([sys.executable, "-c", program, str(stand_in), str(ROOT)])
    while not (note.exists() and note.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    number = int(note.read_text())
    os.kill(number, 0)
    parent.kill()
    parent.wait()
    stat, until = Path(f"/proc/{number}/stat"), time.monotonic() + 20
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until, "it outlived its parent"
        time.sleep(0.1)


def test_without_vllm_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_generation, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"vllm is not installed; try: pip install 'cdpo-lightning\[vllm\]'"):
        VLLM(tmp_path, torch.float32, 0.4)
    assert "vllm" not in sys.modules
