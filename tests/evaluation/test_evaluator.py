"""Log-probabilities of rows in order; and a policy measured on its own samples."""

from dataclasses import replace

import pytest
import torch

from cdpo_lightning.config import ClosedFormConfig
from cdpo_lightning.data.world import grammar
from cdpo_lightning.data.world.closed_form import make_world
from cdpo_lightning.evaluation.evaluator import PolicyEvaluator, SampleCounts
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.scorers.oracle import OracleScorer
from cdpo_lightning.text.packing import pack
from cdpo_lightning.text.templates import Encoder, encode_response

TOKENIZER = word_tokenizer(grammar.vocabulary())
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORLD = make_world(ClosedFormConfig(prompts=8, responses=16), seed=0)


def language_model(seed=0):
    model = build(SIZES, len(TOKENIZER), TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)  # away from the uniform distribution
    return model


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_logp_of_keeps_the_order_of_the_rows(batch_size):
    """Rows of different length and number of responses, run longest first."""
    rows = [((3,), [(4, 1), (5, 6, 7, 1)]), ((3, 4, 5), [(1,)]), ((6, 7), [(8, 1), (9, 1), (3, 3, 3, 3, 3, 1)])]
    model = language_model()
    expected = torch.cat([response_logp(model, pack([(p, [y])])) for p, responses in rows for y in responses])
    measured = response_logp_of_rows(model, rows, batch_size, "32-true")
    assert measured.dtype == torch.float64
    assert not measured.requires_grad
    torch.testing.assert_close(measured, expected.detach().double(), rtol=1e-4, atol=0)


@pytest.fixture
def evaluator():
    scorers = {name: OracleScorer(WORLD, name, name) for name in ("reward", "cost")}
    return PolicyEvaluator(scorers, language_model(1), Encoder(TOKENIZER, "plain", 16, 6), 3, 8, "32-true")


def test_a_measurement_has_the_score_and_log_probability_of_each_sample(evaluator):
    policy, prompts = language_model(), WORLD.prompts[:3]
    measured = evaluator.measure(policy, prompts, 4, seed=9)
    assert measured.prompt.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [prompt for prompt, _ in measured.texts] == [prompts[i] for i in measured.prompt.tolist()]
    assert measured.scored == len(set(measured.texts))
    assert measured.scores["cost"].tolist() == [WORLD.truth(*text)[1] for text in measured.texts]
    assert measured.scores["reward"].tolist() == [WORLD.truth(*text)[0] for text in measured.texts]
    rows = [(evaluator.encoder.prompt(prompts[s.prompt]), [s.tokens]) for s in measured.samples]
    for name, model in (("policy_logp", policy), ("reference_logp", evaluator.reference)):
        torch.testing.assert_close(getattr(measured, name), response_logp_of_rows(model, rows, 1, "32-true"), rtol=1e-4, atol=1e-4)
    assert measured.samples == evaluator.measure(policy, prompts, 4, seed=9).samples
    assert measured.samples != evaluator.measure(policy, prompts, 4, seed=10).samples


def test_the_reference_is_its_own_reference(evaluator):
    """KL of a policy to itself is 0 sample by sample."""
    measured = evaluator.measure(evaluator.reference, WORLD.prompts, 4, seed=0)
    torch.testing.assert_close(measured.policy_logp, measured.reference_logp, rtol=1e-4, atol=1e-4)


def test_equal_samples_run_through_the_reference_once(evaluator, rows_run):
    """Room for one token only: many samples are equal."""
    short = replace(evaluator, encoder=replace(evaluator.encoder, max_response=1))
    measured, rows = rows_run(evaluator.reference.model, lambda: short.measure(language_model(), WORLD.prompts[:2], 64, seed=0))
    assert rows == len({(s.prompt, s.tokens) for s in measured.samples}) < 128


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


class ResponseLength:
    """A third scorer: the number of words."""

    identity = "words"

    def score(self, texts):
        return torch.tensor([len(response.split()) for _, response in texts], dtype=torch.float64)


def test_every_scorer_gives_a_score_under_its_own_name(evaluator):
    three = replace(evaluator, scorers={**evaluator.scorers, "words": ResponseLength()})
    measured = three.measure(language_model(), WORLD.prompts[:2], 3, seed=0)
    assert list(measured.scores) == ["reward", "cost", "words"]
    assert measured.scores["words"].tolist() == [len(response.split()) for _, response in measured.texts]


def test_a_policy_with_an_encoder_of_its_own_has_no_reference_log_probability(evaluator):
    """It draws the same samples; only what the reference says of them is not known."""
    own = replace(evaluator.encoder)
    measured = evaluator.measure(language_model(), WORLD.prompts[:2], 3, seed=9, encoder=own)
    assert measured.reference_logp.isnan().all()
    assert measured.samples == evaluator.measure(language_model(), WORLD.prompts[:2], 3, seed=9).samples


def test_sample_counts_add_up(evaluator):
    first, second = (evaluator.measure(language_model(), WORLD.prompts[:2], 3, seed=seed) for seed in (0, 1))
    counts = SampleCounts().plus(first).plus(second)
    assert counts.samples == 12
    assert counts.tokens == sum(len(s.tokens) for s in (*first.samples, *second.samples)) == first.tokens + second.tokens
    assert counts.scored == len(set(first.texts)) + len(set(second.texts))


def test_the_facts_of_a_round_are_means_over_the_samples(evaluator):
    measured = evaluator.measure(language_model(), WORLD.prompts[:2], 4, seed=0)
    facts = measured.facts()
    assert facts["dual/expected_reward"] == pytest.approx(sum(WORLD.truth(*text)[0] for text in measured.texts) / 8)
    assert facts["dual/response_tokens"] == sum(len(s.tokens) for s in measured.samples) / 8
    unfinished = [s for s in measured.samples if s.tokens[-1] != TOKENIZER.eos_token_id]
    assert facts["dual/unfinished"] == len(unfinished) / 8
