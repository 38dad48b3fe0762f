"""Small parts for tests of the pipeline: a configuration, a model, a store, a screen, and a measurement with given scores."""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdpo_lightning.config import (
    ClosedFormConfig,
    ConstraintConfig,
    EvaluationConfig,
    FitConfig,
    GenerationConfig,
    LoggerConfig,
    MethodConfig,
    ModelConfig,
    PolicyConfig,
    PPOConfig,
    PrimalDualConfig,
    RunConfig,
    ScorerConfig,
    TrainerConfig,
)
from cdpo_lightning.data.world import grammar
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.models.sampling.generation import Sample
from cdpo_lightning.pipeline.inference import Inference
from cdpo_lightning.store.artifacts import ForwardCounter, Store
from cdpo_lightning.store.history import History
from cdpo_lightning.text.templates import Encoder
from cdpo_lightning.training.fit import FitSettings

SIZES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    """A run on the closed-form world with a model of two layers; change it with `dataclasses.replace`."""
    return RunConfig(
        name="test",
        seed=0,
        mode="run",
        stages=["sft", "reward", "cost", "policy", "evaluate"],
        resume=False,
        run_dir=str(tmp_path / "run"),
        artifacts_dir=str(tmp_path / "artifacts"),
        model=ModelConfig(architecture=SIZES),
        dataset=ClosedFormConfig(prompts=8, responses=16, pairs_per_prompt=4, demonstrations_per_prompt=4),
        sft=FitConfig(),
        reward=ScorerConfig(),
        cost=ScorerConfig(),
        policy=PolicyConfig(),
        constraint=ConstraintConfig(samples_per_prompt=4, one_shot_samples=6),
        method=MethodConfig(),
        primal_dual=PrimalDualConfig(),
        ppo=PPOConfig(),
        evaluation=EvaluationConfig(samples_per_prompt=2),
        generation=GenerationConfig(),
        trainer=TrainerConfig(),
        logger=LoggerConfig(),
    )


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer(grammar.vocabulary())


@pytest.fixture(scope="session")
def encoder(tokenizer):
    return Encoder(tokenizer, "plain", 16, 24)


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """A language model of two layers: `make_model(seed)`; weights large enough that every token has its own probability."""

    def make(seed=0):
        model = build(SIZES, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, seed).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8 if parameter.ndim > 1 else 1)
        return model

    return make


@pytest.fixture(scope="session")
def inference():
    return Inference(torch.device("cpu"), "32-true", batch_size=2, compile=False, offload=False)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "artifacts", ForwardCounter(tmp_path / "ledger.json", resume=False))


@pytest.fixture
def settings(config, tmp_path):
    return FitSettings(config.trainer, History(tmp_path / "history.csv", False), tmp_path / "checkpoints", config.seed)


class Screen:
    """A screen that keeps the printed lines."""

    progress = False

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def data(self, corpus):
        self.lines.append(f"data {len(corpus.pairs)} pairs")

    @contextmanager
    def stage(self, name):
        facts = {}
        yield facts.update
        self.lines.append(f"{name} {facts}")

    @property
    def text(self):
        return "\n".join(self.lines)


@pytest.fixture
def screen():
    return Screen()


class LookUp:
    """A scorer that looks (prompt, response) or the response up, and counts how often it is called."""

    def __init__(self, scores: Mapping, identity="look-up", default=0.0):
        self.scores, self.identity, self.default, self.calls = scores, identity, default, 0

    def score(self, texts):
        self.calls += 1
        return torch.tensor([self.scores.get(t, self.scores.get(t[1], self.default)) for t in texts], dtype=torch.float64)


@pytest.fixture
def look_up():
    return LookUp


@pytest.fixture
def measurement():
    """A measurement with these scores by name, each [P, K]: sample k of prompt p has the tokens (p + 3, k + 3, 1)."""

    def make(scores, prompts=None):
        scores = {name: torch.as_tensor(score, dtype=torch.float64) for name, score in scores.items()}
        count, each = next(iter(scores.values())).shape
        samples = [Sample(p, (p + 3, k + 3, 1), True, -1.0 - k) for p in range(count) for k in range(each)]
        names = prompts or [f"p{p}" for p in range(count)]
        texts = [(names[s.prompt], f"r{s.tokens[1] - 3}") for s in samples]
        return Measurement(
            samples=samples,
            texts=texts,
            prompt=torch.tensor([s.prompt for s in samples]),
            scores={name: score.flatten() for name, score in scores.items()},
            policy_logp=torch.tensor([s.logp for s in samples], dtype=torch.float64),
            reference_logp=torch.tensor([s.logp - 0.5 for s in samples], dtype=torch.float64),
            scored=len(set(texts)),
        )

    return make


class Evaluator:
    """Returns a prepared measurement, and keeps what it was called with."""

    def __init__(self, measured, reference=None, encoder=None, scorers=("reward", "cost")):
        self.measured, self.reference, self.encoder = measured, reference, encoder
        self.scorers = dict.fromkeys(scorers)
        self.calls = []

    def measure(self, model, prompts, samples_per_prompt, seed, encoder=None):
        self.calls.append((model, list(prompts), samples_per_prompt, seed, encoder))
        result = self.measured[model] if isinstance(self.measured, Mapping) else self.measured
        return replace(result, reference_logp=torch.full_like(result.reference_logp, torch.nan)) if encoder else result


@pytest.fixture
def stub_evaluator():
    return Evaluator


@pytest.fixture
def files(tmp_path):
    """The lines of a file below the temporary folder."""
    return lambda name: Path(tmp_path, name).read_text(encoding="utf-8").splitlines()
