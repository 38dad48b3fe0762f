"""What each objective fits: labels by hand, independent draws, and the optimum that is theirs."""

import math

import pytest
import torch

from cdpo_lightning.data.pairs.objectives import CostPreference, FixedLabels, LagrangianPreference
from cdpo_lightning.data.pairs.pair_table import PairTable, draws

BETA = 0.5


def table(cost, reward=None, pairs=1):
    """`pairs` copies of one pair, of the given costs and rewards."""
    return PairTable(
        prompts=((9,),),
        responses=((5, 1), (6, 1)),
        prompt_N=torch.zeros(2, dtype=torch.long),
        reward_N=torch.tensor(reward or [0.0, 0.0], dtype=torch.float64),
        cost_N=torch.tensor(cost, dtype=torch.float64),
        reference_logp_N=torch.zeros(2, dtype=torch.float64),
        pair_M2=torch.tensor([[0, 1]] * pairs),
        draw_M=draws(pairs, 0),
    )


def test_the_safer_response_is_preferred_whatever_lambda():
    """Costs ln 3 and 0: response 1 is safer with probability 3/4; the reward has no say."""
    objective = CostPreference(BETA, "soft")
    given = table([math.log(3), 0.0], reward=[7.0, -7.0])
    for lam in (0.1, 3.0):
        assert objective.target(given, lam).item() == pytest.approx(0.75)
    assert not objective.relabels
    assert objective.temperature(2.0) == BETA / 2
    assert LagrangianPreference(BETA, "soft").temperature(2.0) == BETA


def test_utilities_are_what_the_optimum_weighs_its_reference_with():
    reward, cost = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    assert LagrangianPreference(BETA, "soft").utility(reward, cost, 0.5).tolist() == [-0.5, 2.5]
    assert CostPreference(BETA, "soft").utility(reward, cost, 0.5).tolist() == [-1.5, 0.5]


def test_the_draws_of_both_stages_are_independent():
    """20,000 pairs, fair coins in both stages: each mean is 1/2 and so is their agreement, to 4.5 standard errors."""
    given = table([0.0, 0.0], pairs=20_000)
    reward = LagrangianPreference(BETA, "bernoulli").target(given, 0.0)
    cost = CostPreference(BETA, "bernoulli").target(given, 1.0)
    error = 0.5 / 20_000**0.5
    assert float(reward.mean()) == pytest.approx(0.5, abs=4.5 * error)
    assert float(cost.mean()) == pytest.approx(0.5, abs=4.5 * error)
    assert float((reward == cost).double().mean()) == pytest.approx(0.5, abs=4.5 * error)


def test_given_labels_stay_as_they_are():
    objective = FixedLabels(CostPreference(BETA, "soft"), torch.tensor([0.0, 1.0, 1.0]))
    for lam in (0.0, 2.0):
        assert objective.target(table([5.0, 0.0], pairs=3), lam).tolist() == [0.0, 1.0, 1.0]
    assert objective.temperature(2.0) == BETA / 2
    assert objective.utility(torch.ones(1), torch.ones(1), 2.0).item() == -2
    with pytest.raises(AssertionError, match="without a label"):
        objective.target(table([5.0, 0.0], pairs=4), 0.0)
