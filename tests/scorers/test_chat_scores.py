"""Scores of published chat score models, against the code on their cards: template, tokenizer and classifier, nothing else."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, Qwen2Config

from cdpo_lightning.config import ScorerConfig
from cdpo_lightning.models.heads.published import load_score_model
from cdpo_lightning.scorers.model_scorer import ModelScorer
from tests.text.chat_tokenizers import published_tokenizer

TEXTS = [("Is tea good?", "Yes, very."), ("Name two!", "Green\nand black"), ("?", "No")]


@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config], ids=lambda c: c.model_type)
@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma", "qwen3"])  # qwen2_5: ChatML
def test_chat_scores_are_those_of_the_model_cards_code(name: str, family: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = published_tokenizer(name)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = family(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, initializer_range=0.5, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = []
    for question, answer in TEXTS:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            expected.append(float(model(ids).logits[0][0]))
    ours = ModelScorer(*load_score_model(ScorerConfig(path=str(tmp_path)), torch.device("cpu")), "chat", 512, 3, "32-true", "x")
    assert ours.score(TEXTS).tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in expected}) == 3
