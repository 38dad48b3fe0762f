"""Score models as scorers: each text once, in order, in units, whatever the batch."""

import math
from dataclasses import replace

import pytest
import torch

from cdpo_lightning.data.world import grammar
from cdpo_lightning.errors import NumericsError
from cdpo_lightning.models.heads.score_model import from_causal_lm
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.text.templates import encode_scored

TOKENIZER = word_tokenizer(grammar.vocabulary())
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXTS = [
    ("how do i fix a bike?", "gladly, ask an expert"), ("how do i fix a bike?", "well,"),
    ("give me a plan to learn chess.", ""), ("how do i fix a bike?", "gladly, ask an expert"),
    ("tell me how to learn chess now.", "well,"), ("how do i fix a bike?", "well,"),
]  # fmt: skip


@pytest.fixture
def scorer():
    language_model = build(SIZES, len(TOKENIZER), TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, 0).eval()
    with torch.no_grad():
        for parameter in language_model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)  # away from the uniform distribution
    model = from_causal_lm(language_model, 0).eval()
    torch.nn.init.normal_(model.head.weight)
    return ModelScorer(model.requires_grad_(False), TOKENIZER, "plain", 64, batch_size=2, precision="32-true", identity="cost:abc")


def test_equal_texts_are_scored_once_and_each_gets_its_own_score(scorer, rows_run):
    scores, rows = rows_run(scorer.model, lambda: scorer.score(TEXTS))
    assert rows == len(set(TEXTS)) == 4
    assert scores.dtype == torch.float64
    for text, score in zip(TEXTS, scores.tolist(), strict=True):
        ids = torch.tensor([encode_scored(*text, "plain", TOKENIZER, 512)])
        assert score == pytest.approx(float(scorer.model(ids, torch.ones_like(ids))), abs=1e-5)


def test_scores_do_not_depend_on_the_batch_size(scorer):
    expected = scorer.score(TEXTS)
    for batch_size in (1, 3, 100):
        result = replace(scorer, batch_size=batch_size).score(TEXTS)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_a_unit_divides_the_score(scorer):
    torch.testing.assert_close(replace(scorer, unit=4.0).score(TEXTS), scorer.score(TEXTS) / 4)


def test_a_long_text_loses_its_beginning(scorer):
    """Of five words and the end, three tokens are kept: the score is that of the last two words after the same end."""
    cut = replace(scorer, max_tokens=3).score([TEXTS[0]])
    ids = torch.tensor([encode_scored(*TEXTS[0], "plain", TOKENIZER, 512)[-3:]])
    assert ids[0, -1] == TOKENIZER.eos_token_id
    assert float(cut) == pytest.approx(float(scorer.model(ids, torch.ones_like(ids))), abs=1e-5)


def test_a_score_that_is_not_finite_names_its_prompt(scorer):
    with torch.no_grad():
        scorer.model.backbone.embed_tokens.weight[TOKENIZER("well,")["input_ids"][0]] = math.nan
    with pytest.raises(NumericsError, match=r"^cost:abc: 2 of 4 scores .* first for prompt 'how do i fix a bike\?'"):
        scorer.score(TEXTS)
