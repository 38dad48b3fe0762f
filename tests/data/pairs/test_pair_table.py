"""Labels are a function of the utility and the stored draws alone."""

import dataclasses

import pytest
import torch

from cdpo_lightning.data.pairs.pair_table import PairTable, concatenate, draws, label_flips


def table(prompts=((9,), (8, 7)), shift=0.0, seed=0):
    """Prompt 0 has responses 0, 1, 2, prompt 1 has 3, 4; pairs (0, 1), (2, 0), (3, 4).

    r - lam c by hand:  0: 1 - lam   1: 0   2: 2 - 3 lam   3: 0 + lam   4: 0.5 - lam
    """
    return PairTable(
        prompts=prompts,
        responses=((1,), (2, 1), (3, 1), (4, 1), (5, 5, 1)),
        prompt_N=torch.tensor([0, 0, 0, 1, 1]),
        scores={
            "reward": torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5], dtype=torch.float64) + shift,
            "cost": torch.tensor([1.0, 0.0, 3.0, -1.0, 1.0], dtype=torch.float64),
        },
        reference_logp_N=torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0], dtype=torch.float64),
        pair_M2=torch.tensor([[0, 1], [2, 0], [3, 4]]),
        draw_M=draws(3, seed),
    )


def utility(made, lam):
    """r - lam c of every response."""
    return made.scores["reward"] - lam * made.scores["cost"]


def row(made, pair):
    """The prompt and both responses of a pair, in stored order."""
    ends = made.pair_M2[pair].tolist()
    return [made.prompts[int(made.prompt_N[i])] for i in ends], [made.responses[i] for i in ends]


@pytest.mark.parametrize("lam", [0.0, 0.4, 2.0])
def test_probability_by_hand(lam):
    """sigma of (0) - (1 - lam), (1 - lam) - (2 - 3 lam), (0.5 - lam) - lam."""
    margin = torch.tensor([lam - 1, 2 * lam - 1, 0.5 - 2 * lam], dtype=torch.float64)
    torch.testing.assert_close(table().probability(utility(table(), lam)), 1 / (1 + torch.exp(-margin)))
    assert torch.equal(table().target(utility(table(), lam), "soft"), table().probability(utility(table(), lam)))


def test_bernoulli_labels_are_the_stored_draws_against_the_probability():
    fixed = dataclasses.replace(table(), draw_M=torch.tensor([0.2, 0.3, 0.6], dtype=torch.float64))
    assert fixed.probability(utility(fixed, 0.0)).tolist() == pytest.approx([0.2689, 0.2689, 0.6225], abs=1e-4)
    assert fixed.target(utility(fixed, 0.0), "bernoulli").tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels", ["bernoulli", "soft", "argmax"])
def test_labels_follow_lambda_alone(labels):
    """The draws are the same in a second call, in another order, and with another state of the global generator."""
    made = table()
    first = {lam: made.target(utility(made, lam), labels) for lam in (0.0, 0.5, 3.0)}
    torch.manual_seed(7)
    assert all(torch.equal(made.target(utility(made, lam), labels), first[lam]) for lam in (3.0, 0.0, 0.5))
    assert not torch.equal(first[0.0], first[3.0])


@pytest.mark.parametrize("labels", ["bernoulli", "soft", "argmax"])
def test_a_shift_of_all_rewards_changes_no_label(labels):
    shifted, plain = (made.target(utility(made, 0.7), labels) for made in (table(shift=5.0), table()))
    torch.testing.assert_close(shifted, plain)


def test_label_flips_by_hand():
    """r_lambda(1) > r_lambda(0) holds where lam > 1, lam > 1/2, lam < 1/4: from 0 to 0.4 the third pair changes, ..."""
    made = table()

    def flips(before, after, pairs=made):
        return label_flips(pairs, utility(pairs, before), utility(pairs, after))

    assert flips(0.0, 0.0) == 0.0
    assert flips(0.0, 0.4) == pytest.approx(1 / 3)
    assert flips(0.4, 0.7) == pytest.approx(1 / 3)
    assert flips(0.0, 2.0) == 1.0
    assert flips(2.0, 0.0) == 1.0
    assert flips(0.0, 2.0, dataclasses.replace(made, pair_M2=torch.empty(0, 2).long(), draw_M=draws(0, 0))) == 0.0


def test_the_lowest_value_of_each_prompt_by_hand():
    made = table(prompts=((9,), (8, 7), (6,)))
    assert table().lowest(table().scores["cost"]).tolist() == [0.0, -1.0]
    assert made.lowest(made.scores["cost"]).tolist() == [0.0, -1.0, float("inf")]


def test_concatenate_keeps_each_pair_its_own():
    """Row by row, label by label, the joined table is the first one and then the second."""
    first, second = table(seed=1), table(shift=2.0, seed=2)
    scores = second.scores | {"cost": -second.scores["cost"]}
    second = dataclasses.replace(second, scores=scores, responses=tuple((*r, 6) for r in second.responses))
    joined = concatenate([first, second])
    assert len(joined) == 6
    assert [row(joined, i) for i in range(6)] == [row(t, i) for t in (first, second) for i in range(3)]
    for labels in ("bernoulli", "soft"):
        expected = torch.cat([t.target(utility(t, 0.6), labels) for t in (first, second)])
        assert torch.equal(joined.target(utility(joined, 0.6), labels), expected)
    logp = torch.cat([t.reference_logp_N[t.pair_M2] for t in (first, second)])
    assert torch.equal(joined.reference_logp_N[joined.pair_M2], logp)
    assert row(concatenate([first]), 0) == row(first, 0)


def test_state_goes_through_a_checkpoint(tmp_path):
    made = table()
    torch.save(made.state(), tmp_path / "state.pt")
    back = PairTable.from_state(torch.load(tmp_path / "state.pt", weights_only=True), made.prompts)
    assert (back.prompts, back.responses) == (made.prompts, made.responses)
    for name, value in vars(made).items():
        assert not torch.is_tensor(value) or torch.equal(value, getattr(back, name)), name
    assert back.scores.keys() == made.scores.keys()
    assert all(torch.equal(back.scores[name], score) for name, score in made.scores.items())


def test_draws_belong_to_the_seed():
    torch.manual_seed(1)
    first = draws(1000, 3)
    torch.manual_seed(2)
    assert torch.equal(draws(1000, 3), first)
    assert torch.equal(draws(10, 3), first[:10])
    assert not torch.equal(draws(1000, 4), first)
    assert first.dtype == torch.float64
    assert 0 <= float(first.min()) < float(first.max()) < 1
    assert float(first.mean()) == pytest.approx(0.5, abs=4 * 12**-0.5 / 1000**0.5)
