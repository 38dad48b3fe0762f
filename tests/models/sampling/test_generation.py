"""Samples follow the model's distribution, and depend on (seed, prompt, number of the sample) alone."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.models.sampling.generation import _sample_tokens, sample, uniforms
from cdpo_lightning.text.packing import pack

EOS = 1
PROMPTS = [[2, 3, 4], [7], [3, 9, 9, 10, 2], [5, 5], [8, 2, 2, 6, 7, 3, 4]]
PLAIN = {"samples_per_prompt": 4, "max_new_tokens": 6, "stops": (EOS,), "seed": 5, "batch_size": 64}


def tokens(model, prompts=PROMPTS, **changes):
    return [s.tokens for s in sample(model, prompts, **PLAIN | changes)]


@pytest.mark.parametrize("batch_size", [1, 4, 9, 1000])
def test_samples_do_not_depend_on_the_batch_size(any_model, batch_size):
    assert tokens(any_model, batch_size=batch_size) == tokens(any_model)


def test_samples_of_a_prompt_do_not_depend_on_the_other_prompts(any_model):
    """One at a time there is no padding; together the shorter prompts are padded, and ended rows are removed."""
    alone = [t for prompt in PROMPTS for t in tokens(any_model, [prompt])]
    assert tokens(any_model) == alone
    backwards = tokens(any_model, PROMPTS[::-1])
    assert [backwards[4 * i : 4 * i + 4] for i in (4, 3, 2, 1, 0)] == [alone[4 * i : 4 * i + 4] for i in range(5)]


def test_the_first_samples_do_not_depend_on_the_number_of_samples(make_model):
    few, many = tokens(make_model(), PROMPTS[:1]), tokens(make_model(), PROMPTS[:1], samples_per_prompt=32)
    assert many[:4] == few


def test_samples_depend_on_the_seed_and_repeat(make_model):
    model = make_model()
    assert tokens(model) == tokens(model)
    assert tokens(model, seed=6) != tokens(model)
    assert tokens(model, seed=2**63 + 5) != tokens(model)


def test_the_global_random_state_is_unchanged(make_model):
    model = make_model()
    before = torch.random.get_rng_state()
    tokens(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_logp_is_that_of_the_sampled_tokens(any_model):
    drawn = sample(any_model, PROMPTS, **PLAIN)
    rows = [(PROMPTS[s.prompt], [s.tokens]) for s in drawn]
    expected = response_logp(any_model, pack(rows))
    torch.testing.assert_close(torch.tensor([s.logp for s in drawn]), expected, rtol=1e-4, atol=1e-5)


def test_finished_means_that_the_last_token_is_the_end(make_model):
    drawn = sample(make_model(), PROMPTS, **PLAIN | {"samples_per_prompt": 32})
    assert [s.prompt for s in drawn] == [i for i in range(len(PROMPTS)) for _ in range(32)]
    for s in drawn:
        assert EOS not in s.tokens[:-1]
        assert s.finished == (s.tokens[-1] == EOS)
        assert s.finished or len(s.tokens) == 6
    assert {s.finished for s in drawn} == {True, False}


def test_each_of_several_stop_ids_ends_a_sample(make_model):
    """The same random numbers: the samples are those without a second stop id, cut after the first of either."""
    two, one = (sample(make_model(), PROMPTS, **PLAIN | {"samples_per_prompt": 32, "stops": stops}) for stops in ((EOS, 4), (EOS,)))
    for short, long in zip(two, one, strict=True):
        end = long.tokens.index(4) + 1 if 4 in long.tokens else len(long.tokens)
        assert short.tokens == long.tokens[:end]
        assert short.finished == (short.tokens[-1] in (EOS, 4))
    assert {s.tokens[-1] for s in two if s.finished} == {EOS, 4}


def test_an_end_token_in_the_last_step_finishes_a_sample(make_model):
    """With one token allowed, the finished samples are those whose only token is the end."""
    drawn = sample(make_model(), PROMPTS, **PLAIN | {"samples_per_prompt": 64, "max_new_tokens": 1})
    assert all(len(s.tokens) == 1 and s.finished == (s.tokens == (EOS,)) for s in drawn)
    assert any(s.finished for s in drawn)


def enumerated(model, prompt, steps, logp_alone):
    """Return every response that can be sampled in so many steps with its probability; they sum to 1."""
    vocabulary = range(model.config.vocab_size)
    unfinished = [t for t in itertools.product(vocabulary, repeat=steps) if EOS not in t]
    finished = [(*t, EOS) for n in range(steps) for t in itertools.product(vocabulary, repeat=n) if EOS not in t]
    return {t: float(logp_alone(model, prompt, t).exp()) for t in [*finished, *unfinished]}


@torch.no_grad()
def test_samples_follow_the_models_distribution(make_model, logp_alone):
    """Chi-square test against the enumerated probabilities, those below 5 expected counts pooled; two prompts in a batch."""
    model, count = make_model(), 4000
    prompts = [[2, 3, 4], [7]]
    drawn = sample(model, prompts, samples_per_prompt=count, max_new_tokens=2, stops=(EOS,), seed=1, batch_size=2 * count)
    for number, prompt in enumerate(prompts):
        probability = enumerated(model, prompt, 2, logp_alone)
        assert sum(probability.values()) == pytest.approx(1)
        seen = dict.fromkeys(probability, 0)
        for s in drawn[number * count : (number + 1) * count]:
            seen[s.tokens] += 1
        common = [t for t, p in probability.items() if p * count >= 5]
        observed = [seen[t] for t in common] + [count - sum(seen[t] for t in common)]
        expected = [count * probability[t] for t in common] + [count * (1 - sum(probability[t] for t in common))]
        assert len(common) > 20
        assert chisquare(observed, expected).pvalue > 1e-3


def test_tokens_are_the_inverse_of_the_cumulative_distribution():
    """Probabilities 1/2, 0, 1/4, 1/4: the numbers in [0, 1/2) give token 0, those in [1/2, 3/4) token 2, the rest 3."""
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(6, 4)
    token, logp = _sample_tokens(logits, torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 2**-24]))
    assert token.tolist() == [0, 0, 2, 2, 3, 3]
    assert logp.exp().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.25, 0.25])


def test_uniform_numbers_depend_on_seed_and_prompt():
    few, many = uniforms(3, [1, 2], 2, 5), uniforms(3, [1, 2], 6, 5)
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(few, uniforms(4, [1, 2], 2, 5))
    assert not np.array_equal(few, uniforms(3, [1, 2, 2], 2, 5))
    assert many.min() >= 0
    assert many.max() < 1
