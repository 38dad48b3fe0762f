"""The closed-form world: its moments are those configured, and its data follow its true scores."""

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
    return float(np.corrcoef(world.scores_GK["reward"].flatten().numpy(), world.scores_GK["cost"].flatten().numpy())[0, 1])


@pytest.mark.parametrize("responses", SIZES)
@pytest.mark.parametrize(("rho", "risk"), [(0.6, 0.2), (-0.85, 0.25), (0.0, 0.0)])
def test_the_moments_are_exactly_those_configured(responses, rho, risk):
    world = make_world(ClosedFormConfig(responses=responses, correlation=rho, risk_share=risk), seed=1)
    for value in (world.scores_GK["reward"].numpy(), world.scores_GK["cost"].numpy()):
        assert value.shape == (8, responses)
        assert value.mean() == pytest.approx(0, abs=1e-12)
        assert value.std() == pytest.approx(1, abs=1e-12)
    assert correlation(world) == pytest.approx(rho, abs=1e-12)


def test_risk_share_is_the_topics_share_of_the_variance_of_the_cost(world):
    """With risk_share 0.2 the mean cost of a benign topic is -sqrt(0.2), of a risky one sqrt(0.2); all mean rewards are 0."""
    mean_cost = world.scores_GK["cost"].mean(1)
    assert mean_cost.tolist() == pytest.approx([-(0.2**0.5)] * 4 + [0.2**0.5] * 4)
    assert world.scores_GK["reward"].mean(1).abs().max() < 1e-12


@pytest.mark.parametrize("responses", SIZES)
def test_responses_are_distinct_and_all_words_are_in_the_vocabulary(responses):
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


def test_prompts_are_distinct_and_no_held_out_prompt_is_a_training_prompt():
    world = make_world(ClosedFormConfig(prompts=64), seed=0)
    assert len(set(world.prompts)) == 64
    assert not set(world.prompts) & set(world.held_out)
    assert len(set(world.held_out)) == len(grammar.topics())
    for prompt, topic in zip(world.prompts, world.topic, strict=True):
        assert grammar.topics()[topic] in prompt


def test_true_scores_are_those_of_the_topic_and_the_response(world):
    k = 17
    for prompts, topics in ((world.prompts, world.topic), (world.held_out, range(8))):
        for prompt, g in zip(prompts, topics, strict=True):
            expected = (float(world.scores_GK["reward"][g, k]), float(world.scores_GK["cost"][g, k]))
            assert world.truth(prompt, world.responses[k]) == expected
            assert tuple(world.score(name, prompt, world.responses[k]) for name in ("reward", "cost")) == expected


@pytest.mark.parametrize("text", ["", "sure,", "hello", "sure, sure, follow these steps good luck!", "<unk>"])
def test_true_scores_outside_the_grammar(text):
    world = make_world(ClosedFormConfig(off_grammar_reward=-4.5, off_grammar_cost=2.5), seed=0)
    assert world.truth(world.prompts[0], text) == (-4.5, 2.5)
    assert [world.score(name, world.prompts[0], text) for name in ("reward", "cost")] == [-4.5, 2.5]


def test_equal_seeds_give_equal_worlds_and_data():
    torch.manual_seed(1)
    random.seed(1)
    first = make_world(ClosedFormConfig(), seed=3)
    torch.manual_seed(2)
    random.seed(2)
    again = make_world(ClosedFormConfig(), seed=3)
    assert torch.equal(first.scores_GK["reward"], again.scores_GK["reward"])
    assert torch.equal(first.scores_GK["cost"], again.scores_GK["cost"])
    assert torch.equal(first.behaviour_logp_GK, again.behaviour_logp_GK)
    for make in (closed_form.demonstrations, closed_form.preference_pairs):
        assert make(first, first.prompts, 5, 7) == make(again, again.prompts, 5, 7)
        assert make(first, first.prompts, 5, 7) != make(first, first.prompts, 5, 8)
    assert not torch.equal(make_world(ClosedFormConfig(), seed=4).scores_GK["reward"], first.scores_GK["reward"])


def test_demonstrations_follow_the_behaviour_distribution(world):
    torch.testing.assert_close(world.behaviour_logp_GK.exp().sum(1), torch.ones(8, dtype=torch.float64))
    sampled = closed_form.demonstrations(world, world.prompts[:2], 3000, 0)
    assert [d.prompt for d in sampled] == [p for p in world.prompts[:2] for _ in range(3000)]
    for prompt, topic in zip(world.prompts[:2], world.topic[:2], strict=True):
        seen = torch.zeros(64, dtype=torch.float64)
        for d in sampled:
            seen[world.response_index[d.response]] += d.prompt == prompt
        expected = 3000 * world.behaviour_logp_GK[topic].exp()
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
    """In five bins of sigma(difference), the share of pairs with response_1 preferred is the mean probability, to 4 errors."""
    truth = np.array([[world.truth(p.prompt, text)[which] for text in p.responses] for p in pairs])
    probability = 1 / (1 + np.exp(-sign * (truth[:, 1] - truth[:, 0])))
    chosen = np.array([getattr(p, label) for p in pairs])
    bins = np.digitize(probability, [0.2, 0.4, 0.6, 0.8])
    assert set(bins) == {0, 1, 2, 3, 4}
    for b in range(5):
        in_bin = bins == b
        error = (probability[in_bin] * (1 - probability[in_bin])).sum() ** 0.5
        assert abs((chosen[in_bin] - probability[in_bin]).sum()) < 4 * error, b


def test_a_share_of_the_pairs_has_a_response_outside_the_grammar(world, pairs):
    """At most 0.25, to four standard errors, less where corruption gave a valid text; never both responses, each equally often."""
    outside = np.array([[text not in world.response_index for text in p.responses] for p in pairs])
    assert not outside.all(1).any()
    assert 0.2 < outside.any(1).mean() < 0.25 + 4 * (0.25 * 0.75 / len(pairs)) ** 0.5
    assert 0.45 < outside[:, 0].sum() / outside.sum() < 0.55
    none = make_world(ClosedFormConfig(off_grammar_share=0.0), seed=3)
    assert all(t in none.response_index for p in closed_form.preference_pairs(none, none.prompts, 20, 0) for t in p.responses)


def test_corrupted_texts_use_words_of_the_vocabulary(world):
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


def test_withheld_responses_are_in_no_pair_and_are_the_best():
    """A quarter of 64 is 16: those of each topic with the highest reward - cost. By default nothing is withheld."""
    config = ClosedFormConfig(withheld=0.25, off_grammar_share=0.0)
    world = make_world(config, seed=3)
    pairs = closed_form.preference_pairs(world, world.prompts, 16, 5)
    excluded = closed_form.withheld(world)
    assert excluded.sum(1).tolist() == [16] * 8
    for pair in pairs:
        topic = world.topic_of[pair.prompt]
        assert not any(excluded[topic, world.response_index[text]] for text in pair.responses)
    value = world.scores_GK["reward"] - world.scores_GK["cost"]
    assert all(float(value[g][excluded[g]].min()) >= float(value[g][~excluded[g]].max()) for g in range(8))
    whole = make_world(ClosedFormConfig(), seed=3)
    assert not closed_form.withheld(whole).any()
