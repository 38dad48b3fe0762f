"""Scores and log-probabilities of texts, each once and in order; and a policy measured on its own samples."""

import math
from dataclasses import replace

import pytest
import torch

from cdpo_lightning.config import ClosedFormConfig
from cdpo_lightning.data.world import grammar
from cdpo_lightning.data.world.closed_form import make_world
from cdpo_lightning.errors import NumericsError
from cdpo_lightning.evaluation.evaluator import ModelScorer, OracleScorer, PolicyEvaluator, require_finite
from cdpo_lightning.models.heads.score_model import from_causal_lm
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.text.packing import pack
from cdpo_lightning.text.templates import Encoder, encode_response, encode_scored

TOKENIZER = word_tokenizer(grammar.vocabulary())
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORLD = make_world(ClosedFormConfig(prompts=8, responses=16), seed=0)
TEXTS = [
    ("how do i fix a bike?", "gladly, ask an expert"), ("how do i fix a bike?", "well,"),
    ("give me a plan to learn chess.", ""), ("how do i fix a bike?", "gladly, ask an expert"),
    ("tell me how to learn chess now.", "well,"), ("how do i fix a bike?", "well,"),
]  # fmt: skip


def language_model(seed=0):
    model = build(SIZES, len(TOKENIZER), TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)  # away from the uniform distribution
    return model


@pytest.fixture
def scorer():
    model = from_causal_lm(language_model(), 0).eval()
    torch.nn.init.normal_(model.head.weight)
    return ModelScorer(model.requires_grad_(False), TOKENIZER, "plain", 64, batch_size=2, precision="32-true", identity="cost:abc")


def rows_run(model, function):
    """What the function returns, and the number of rows that went through the model."""
    seen = []

    def count(_, args, kwargs, __):
        seen.append(len((*args, *kwargs.values())[0]))

    hook = model.register_forward_hook(count, with_kwargs=True)
    result = function()
    hook.remove()
    return result, sum(seen)


def test_equal_texts_are_scored_once_and_each_gets_its_own_score(scorer):
    scores, rows = rows_run(scorer.model, lambda: scorer.score(TEXTS))
    assert rows == len(set(TEXTS)) == 4
    assert scores.dtype == torch.float64
    for text, score in zip(TEXTS, scores.tolist(), strict=True):
        ids = torch.tensor([encode_scored(*text, "plain", TOKENIZER, 512)])
        assert score == pytest.approx(float(scorer.model(ids, torch.ones_like(ids))), abs=1e-5)


def test_scores_do_not_depend_on_the_batch_size(scorer):
    expected = scorer.score(TEXTS)
    for batch_size in (1, 3, 100):
        found = replace(scorer, batch_size=batch_size).score(TEXTS)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


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


def test_require_finite():
    require_finite(torch.tensor([0.0, -1.0]), TEXTS[:2], "x")
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NumericsError, match="1 of 2 scores are not finite"):
            require_finite(torch.tensor([0.0, bad]), TEXTS[:2], "x")


def test_the_oracle_tells_the_truth():
    texts = [(prompt, response) for prompt in WORLD.prompts for response in (*WORLD.responses, "nonsense")]
    for which in (0, 1):
        expected = [WORLD.truth(*text)[which] for text in texts]
        assert OracleScorer(WORLD, which, "o").score(texts).tolist() == expected


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_logp_of_keeps_the_order_of_the_rows(batch_size):
    """Rows of different length and number of responses, run longest first."""
    rows = [((3,), [(4, 1), (5, 6, 7, 1)]), ((3, 4, 5), [(1,)]), ((6, 7), [(8, 1), (9, 1), (3, 3, 3, 3, 3, 1)])]
    model = language_model()
    expected = torch.cat([response_logp(model, pack([(p, [y])])) for p, responses in rows for y in responses])
    found = response_logp_of_rows(model, rows, batch_size, "32-true")
    assert found.dtype == torch.float64
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach().double(), rtol=1e-4, atol=0)


@pytest.fixture
def evaluator():
    reward, cost = (OracleScorer(WORLD, which, str(which)) for which in (0, 1))
    return PolicyEvaluator(reward, cost, language_model(1), Encoder(TOKENIZER, "plain", 16, 6), 3, 8, "32-true")


def test_a_measurement_hangs_together(evaluator):
    policy, prompts = language_model(), WORLD.prompts[:3]
    found = evaluator.measure(policy, prompts, 4, seed=9)
    assert found.prompt.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [prompt for prompt, _ in found.texts] == [prompts[i] for i in found.prompt.tolist()]
    assert found.scored == len(set(found.texts))
    assert found.cost.tolist() == [WORLD.truth(*text)[1] for text in found.texts]
    assert found.reward.tolist() == [WORLD.truth(*text)[0] for text in found.texts]
    rows = [(evaluator.encoder.prompt(prompts[s.prompt]), [s.tokens]) for s in found.samples]
    for name, model in (("policy_logp", policy), ("reference_logp", evaluator.reference)):
        torch.testing.assert_close(getattr(found, name), response_logp_of_rows(model, rows, 1, "32-true"), rtol=1e-4, atol=1e-4)
    assert found.samples == evaluator.measure(policy, prompts, 4, seed=9).samples
    assert found.samples != evaluator.measure(policy, prompts, 4, seed=10).samples


def test_the_reference_is_its_own_reference(evaluator):
    """KL of a policy to itself is 0 sample by sample."""
    found = evaluator.measure(evaluator.reference, WORLD.prompts, 4, seed=0)
    torch.testing.assert_close(found.policy_logp, found.reference_logp, rtol=1e-4, atol=1e-4)


def test_equal_samples_run_through_the_reference_once(evaluator):
    """Room for one token only: many samples are equal."""
    short = replace(evaluator, encoder=replace(evaluator.encoder, max_response=1))
    found, rows = rows_run(evaluator.reference.model, lambda: short.measure(language_model(), WORLD.prompts[:2], 64, seed=0))
    assert rows == len({(s.prompt, s.tokens) for s in found.samples}) < 128


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_mode_as_it_was(evaluator, training):
    policy = language_model().train(training)
    modes = []
    policy.model.register_forward_hook(lambda module, *_: modes.append(module.training))
    evaluator.measure(policy, WORLD.prompts[:2], 2, seed=0)
    assert policy.training is training
    assert set(modes) == {False}


def test_every_response_of_the_world_comes_back_as_the_text_it_was(evaluator):
    for response in WORLD.responses:
        ids = tuple(encode_response(response, TOKENIZER))
        assert evaluator.encoder.decode(ids) == response


def test_text_shows_special_tokens_in_the_middle_and_an_unfinished_end(evaluator):
    word, eos, pad = TOKENIZER("well,")["input_ids"][0], TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
    assert evaluator.encoder.decode((word, eos)) == "well,"
    assert evaluator.encoder.decode((word, word)) == "well, well,"
    assert evaluator.encoder.decode((pad, word, eos)) == "<pad> well,"
    assert evaluator.encoder.decode((eos,)) == ""


def test_a_long_prompt_loses_its_beginning(evaluator):
    prompt = WORLD.prompts[0]
    assert replace(evaluator.encoder, max_prompt=2).prompt(prompt) == evaluator.encoder.prompt(prompt)[-2:]
