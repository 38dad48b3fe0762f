"""The world: its moments are those set, its data are what people with its truth would give."""

import random

import numpy as np
import pytest
import torch

from cdpo_lightning.config import ClosedFormConfig
from cdpo_lightning.data.world import closed_form, grammar
from cdpo_lightning.data.world.closed_form import make_world

SIZES = [16, 64, 256, 1024, 4096]


@pytest.fixture(scope="module")
def world():
    return make_world(ClosedFormConfig(), seed=3)


def correlation(world):
    return float(np.corrcoef(world.reward_GK.flatten().numpy(), world.cost_GK.flatten().numpy())[0, 1])


@pytest.mark.parametrize("responses", SIZES)
@pytest.mark.parametrize(("rho", "risk"), [(0.6, 0.2), (-0.85, 0.25), (0.0, 0.0)])
def test_moments_are_exactly_those_set(responses, rho, risk):
    world = make_world(ClosedFormConfig(responses=responses, correlation=rho, risk_share=risk), seed=1)
    for value in (world.reward_GK.numpy(), world.cost_GK.numpy()):
        assert value.shape == (8, responses)
        assert value.mean() == pytest.approx(0, abs=1e-12)
        assert value.std() == pytest.approx(1, abs=1e-12)
    assert correlation(world) == pytest.approx(rho, abs=1e-12)


def test_the_topics_own_share_of_the_costs_variance(world):
    """risk_share 0.2: topics' mean costs are -sqrt(0.2) for the benign and +sqrt(0.2) for the risky; rewards know no topic."""
    own = world.cost_GK.mean(1)
    assert own.tolist() == pytest.approx([-(0.2**0.5)] * 4 + [0.2**0.5] * 4)
    assert world.reward_GK.mean(1).abs().max() < 1e-12


@pytest.mark.parametrize("responses", SIZES)
def test_responses_are_distinct_and_spoken_in_the_vocabulary(responses):
    world = make_world(ClosedFormConfig(responses=responses), seed=0)
    words = set(grammar.vocabulary())
    assert len(world.responses) == len(set(world.responses)) == responses
    assert {word for text in world.responses for word in text.split()} <= words
    assert {word for text in world.prompts + world.held_out for word in text.split()} <= words


def test_a_response_is_one_option_of_each_slot():
    texts = grammar.responses(2)
    assert texts[:5] == [
        "sure, follow these steps", "sure, start with basics", "sure, ask an expert", "sure, better avoid that",
        "gladly, follow these steps",
    ]  # fmt: skip


def test_prompts_are_distinct_and_the_held_out_are_apart():
    world = make_world(ClosedFormConfig(prompts=64), seed=0)
    assert len(set(world.prompts)) == 64
    assert not set(world.prompts) & set(world.held_out)
    assert len(set(world.held_out)) == len(grammar.topics())
    for prompt, topic in zip(world.prompts, world.topic, strict=True):
        assert grammar.topics()[topic] in prompt


def test_truth_is_that_of_the_topic_and_the_response(world):
    k = 17
    for prompts, topics in ((world.prompts, world.topic), (world.held_out, range(8))):
        for prompt, g in zip(prompts, topics, strict=True):
            expected = (float(world.reward_GK[g, k]), float(world.cost_GK[g, k]))
            assert world.truth(prompt, world.responses[k]) == expected


@pytest.mark.parametrize("text", ["", "sure,", "hello", "sure, sure, follow these steps good luck!", "<unk>"])
def test_truth_of_text_outside_the_grammar(text):
    world = make_world(ClosedFormConfig(off_grammar_reward=-4.5, off_grammar_cost=2.5), seed=0)
    assert world.truth(world.prompts[0], text) == (-4.5, 2.5)


def test_equal_seeds_give_equal_worlds_and_data():
    torch.manual_seed(1)
    random.seed(1)
    first = make_world(ClosedFormConfig(), seed=3)
    torch.manual_seed(2)
    random.seed(2)
    again = make_world(ClosedFormConfig(), seed=3)
    assert torch.equal(first.reward_GK, again.reward_GK)
    assert torch.equal(first.cost_GK, again.cost_GK)
    assert torch.equal(first.behaviour_GK, again.behaviour_GK)
    for make in (closed_form.demonstrations, closed_form.preference_pairs):
        assert make(first, first.prompts, 5, 7) == make(again, again.prompts, 5, 7)
        assert make(first, first.prompts, 5, 7) != make(first, first.prompts, 5, 8)
    assert not torch.equal(make_world(ClosedFormConfig(), seed=4).reward_GK, first.reward_GK)


def test_behaviour_is_a_distribution_over_the_grammar(world):
    torch.testing.assert_close(world.behaviour_GK.exp().sum(1), torch.ones(8, dtype=torch.float64))
    wild = closed_form.demonstrations(world, world.prompts[:2], 3000, 0)
    assert [d.prompt for d in wild] == [p for p in world.prompts[:2] for _ in range(3000)]
    for prompt, topic in zip(world.prompts[:2], world.topic[:2], strict=True):
        seen = torch.zeros(64, dtype=torch.float64)
        for d in wild:
            seen[world.index[d.response]] += d.prompt == prompt
        expected = 3000 * world.behaviour_GK[topic].exp()
        z = (seen - expected) / expected.sqrt()
        assert float(z.square().sum()) < 63 + 4 * (2 * 63) ** 0.5  # chi-square with 63 degrees of freedom


@pytest.fixture(scope="module")
def pairs(world):
    return closed_form.preference_pairs(world, world.prompts, 200, 0)


def test_pairs_are_of_different_responses_to_their_prompt(world, pairs):
    assert [p.prompt for p in pairs] == [prompt for prompt in world.prompts for _ in range(200)]
    assert all(p.response_0 != p.response_1 for p in pairs)


def test_safety_is_the_sign_of_the_cost(world, pairs):
    for p in pairs:
        costs = [world.truth(p.prompt, text)[1] for text in p.responses]
        assert p.safe == (costs[0] <= 0, costs[1] <= 0)


@pytest.mark.parametrize(("label", "which", "sign"), [("better", 0, 1), ("safer", 1, -1)])
def test_preferences_follow_bradley_terry(world, pairs, label, which, sign):
    """In five bins of sigma(difference), the share of pairs whose response 1 is preferred is the mean probability, to 4 errors."""
    truth = np.array([[world.truth(p.prompt, text)[which] for text in p.responses] for p in pairs])
    probability = 1 / (1 + np.exp(-sign * (truth[:, 1] - truth[:, 0])))
    chosen = np.array([getattr(p, label) for p in pairs])
    bins = np.digitize(probability, [0.2, 0.4, 0.6, 0.8])
    assert set(bins) == {0, 1, 2, 3, 4}
    for b in range(5):
        own = bins == b
        error = (probability[own] * (1 - probability[own])).sum() ** 0.5
        assert abs((chosen[own] - probability[own]).sum()) < 4 * error, b


def test_a_share_of_the_pairs_leaves_the_grammar(world, pairs):
    """0.25 of them within four standard errors, less those that a shuffle or a swap brought back; on either side, never both."""
    outside = np.array([[text not in world.index for text in p.responses] for p in pairs])
    assert not outside.all(1).any()
    assert 0.2 < outside.any(1).mean() < 0.25 + 4 * (0.25 * 0.75 / len(pairs)) ** 0.5
    assert 0.45 < outside[:, 0].sum() / outside.sum() < 0.55
    none = make_world(ClosedFormConfig(off_grammar_share=0.0), seed=3)
    assert all(t in none.index for p in closed_form.preference_pairs(none, none.prompts, 20, 0) for t in p.responses)


def test_corrupt_texts_are_words_of_the_vocabulary(world):
    words, rng = grammar.vocabulary(), random.Random(0)
    texts = {closed_form.corrupt(world.responses[5], words, rng) for _ in range(500)}
    assert len(texts) > 100
    assert all(text and set(text.split()) <= set(words) for text in texts)
    assert max(len(text.split()) for text in texts) <= 2 * len(world.responses[5].split())


def test_evaluation_prompts_are_all_training_prompts(world):
    result = closed_form.evaluation_prompts(world)
    assert [item.prompt for item in result] == world.prompts
    assert {grammar.topics()[t] for t, item in zip(world.topic, result, strict=True) if item.categories == ("risky",)} == set(
        grammar.RISKY_TOPICS
    )


def test_what_is_withheld_stands_in_no_pair_and_is_the_best_there_is():
    """A quarter of 64 is 16: those of the highest reward - cost of each topic; nothing withheld leaves every draw as it was."""
    config = ClosedFormConfig(withheld=0.25, off_grammar_share=0.0)
    world = make_world(config, seed=3)
    pairs = closed_form.preference_pairs(world, world.prompts, 16, 5)
    kept_out = closed_form.withheld(world)
    assert kept_out.sum(1).tolist() == [16] * 8
    for pair in pairs:
        topic = world.topic_of[pair.prompt]
        assert not any(kept_out[topic, world.index[text]] for text in pair.responses)
    value = world.reward_GK - world.cost_GK
    assert all(float(value[g][kept_out[g]].min()) >= float(value[g][~kept_out[g]].max()) for g in range(8))
    whole = make_world(ClosedFormConfig(), seed=3)
    assert not closed_form.withheld(whole).any()
