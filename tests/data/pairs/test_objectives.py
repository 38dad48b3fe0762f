"""What each objective fits: labels by hand, independent draws, and the optimum that is theirs."""

import math

import pytest
import torch

from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.pairs.objectives import CostPreference, FixedLabels, LagrangianPreference
from cdpo_lightning.data.pairs.pair_table import PairTable, draws

BETA = 0.5
COST = (Constraint("cost", "cost", Mean(), 0.0),)
TWO = (*COST, Constraint("length", "length", Mean(), 0.0))


def dual(lam, **others):
    return DualState(lam={"cost": lam, **others})


def table(cost, reward=None, pairs=1, **scores):
    """`pairs` copies of one pair, of the given costs, rewards and further scores."""
    every = {"reward": reward or [0.0, 0.0], "cost": cost, **scores}
    return PairTable(
        prompts=((9,),),
        responses=((5, 1), (6, 1)),
        prompt_N=torch.zeros(2, dtype=torch.long),
        scores={name: torch.tensor(values, dtype=torch.float64) for name, values in every.items()},
        reference_logp_N=torch.zeros(2, dtype=torch.float64),
        pair_M2=torch.tensor([[0, 1]] * pairs),
        draw_M=draws(pairs, 0),
    )


def test_the_safer_response_is_preferred_whatever_lambda():
    """Costs ln 3 and 0: response 1 is safer with probability 3/4; the reward does not matter."""
    objective = CostPreference(BETA, "soft", COST)
    pair = table([math.log(3), 0.0], reward=[7.0, -7.0])
    for lam in (0.0, 0.1, 3.0):
        assert objective.target(pair, dual(lam)).item() == pytest.approx(0.75)
    assert not objective.relabels
    assert objective.temperature(dual(2.0)) == BETA / 2
    assert LagrangianPreference(BETA, "soft", COST).temperature(dual(2.0)) == BETA


def test_two_costs_are_averaged_with_their_multipliers():
    """Costs (2, 0) and (0, 4), multipliers 3 and 1: 3/4 2 - 1/4 4 = 0.5 more for response 0; temperature beta / 4."""
    objective = CostPreference(BETA, "soft", TWO)
    pair, both = table([2.0, 0.0], length=[0.0, 4.0]), dual(3.0, length=1.0)
    assert objective.target(pair, both).item() == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert objective.temperature(both) == BETA / 4
    assert objective.relabels
    assert objective.utility(pair.scores, pair.prompt_N, both).tolist() == [-6.0, -4.0]


def test_lagrangian_labels_of_two_costs_by_hand():
    """Utilities 1 - 2 0.5 - 0 = 0 and 0 - 0 - 4 0.25 = -1: response 1 is preferred with probability sigma(-1)."""
    pair = table([2.0, 0.0], reward=[1.0, 0.0], length=[0.0, 4.0])
    target = LagrangianPreference(BETA, "soft", TWO).target(pair, dual(0.5, length=0.25))
    assert target.item() == pytest.approx(1 / (1 + math.e))


def test_utilities_are_what_the_optimum_weighs_its_reference_with():
    scores = {"reward": torch.tensor([1.0, 2.0]), "cost": torch.tensor([3.0, -1.0])}
    prompt = torch.tensor([0, 0])
    assert LagrangianPreference(BETA, "soft", COST).utility(scores, prompt, dual(0.5)).tolist() == [-0.5, 2.5]
    assert LagrangianPreference(BETA, "soft").utility(scores, prompt, dual(0.5)).tolist() == [1.0, 2.0]
    assert CostPreference(BETA, "soft", COST).utility(scores, prompt, dual(0.5)).tolist() == [-1.5, 0.5]


def test_the_draws_of_both_stages_are_independent():
    """20,000 pairs, fair coins in both stages: each mean is 1/2 and so is their agreement, to 4.5 standard errors."""
    pairs = table([0.0, 0.0], pairs=20_000)
    reward = LagrangianPreference(BETA, "bernoulli", COST).target(pairs, dual(0.0))
    cost = CostPreference(BETA, "bernoulli", COST).target(pairs, dual(1.0))
    error = 0.5 / 20_000**0.5
    assert float(reward.mean()) == pytest.approx(0.5, abs=4.5 * error)
    assert float(cost.mean()) == pytest.approx(0.5, abs=4.5 * error)
    assert float((reward == cost).double().mean()) == pytest.approx(0.5, abs=4.5 * error)


def test_fixed_labels_do_not_change():
    objective = FixedLabels(CostPreference(BETA, "soft", COST), torch.tensor([0.0, 1.0, 1.0]))
    for lam in (0.0, 2.0):
        assert objective.target(table([5.0, 0.0], pairs=3), dual(lam)).tolist() == [0.0, 1.0, 1.0]
    assert objective.temperature(dual(2.0)) == BETA / 2
    one = torch.ones(1)
    assert objective.utility({"reward": one, "cost": one}, torch.zeros(1, dtype=torch.long), dual(2.0)).item() == -2
    with pytest.raises(AssertionError, match="without a label"):
        objective.target(table([5.0, 0.0], pairs=4), dual(0.0))
