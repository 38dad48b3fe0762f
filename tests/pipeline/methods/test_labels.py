"""Which pairs a method learns from and by whose labels, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.pairs.objectives import FixedLabels, LagrangianPreference
from cdpo_lightning.data.pairs.pair_table import PairTable
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.errors import DataError
from cdpo_lightning.pipeline.constants import TrainingPairs
from cdpo_lightning.pipeline.methods.labels import better_labels, safer_labels, select_pairs, unsafe_flags, with_labels

OBJECTIVE = LagrangianPreference(0.5, "soft", (Constraint("cost", "cost", Mean(), 0.0),))
ZERO = DualState(lam={"cost": 0.0})


def training_pairs(*pairs, reward=(0.0, 0.0), cost=(0.0, 0.0), draw=0.5):
    """Pair i of responses 2 i and 2 i + 1, which have these rewards and costs in turn."""
    count = len(pairs)
    table = PairTable(
        prompts=((3,),),
        responses=tuple((5 + i, 1) for i in range(2 * count)),
        prompt_N=torch.zeros(2 * count, dtype=torch.long),
        scores={
            "reward": torch.tensor(reward, dtype=torch.float64).repeat(2 * count // len(reward)),
            "cost": torch.tensor(cost, dtype=torch.float64).repeat(2 * count // len(cost)),
        },
        reference_logp_N=torch.zeros(2 * count, dtype=torch.float64),
        pair_M2=torch.arange(2 * count).view(count, 2),
        draw_M=torch.full((count,), draw, dtype=torch.float64),
    )
    return TrainingPairs(table, list(pairs), ["p"])


def pair(**labels):
    return PreferencePair("p", "a", "b", **labels)


def numbers(labels):
    """Labels as a list, None for nan."""
    return [None if math.isnan(label) else label for label in labels.tolist()]


def test_labels_of_annotators():
    pairs = [pair(better=1, safer=0), pair(better=0), pair(safer=1)]
    assert numbers(better_labels(pairs)) == [1.0, 0.0, None]
    assert numbers(safer_labels(pairs)) == [0.0, None, 1.0]
    assert better_labels([]).shape == (0,)


def test_a_response_is_unsafe_as_labelled_else_by_the_sign_of_its_cost():
    """Costs -1 and 2 in every pair; a cost of exactly 0 is not unsafe."""
    labelled = [pair(), pair(safe_0=False), pair(safe_1=True), pair(safe_0=True, safe_1=False)]
    pairs = training_pairs(*labelled, cost=(-1.0, 2.0))
    expected = [[False, True], [True, True], [False, False], [False, True]]
    assert unsafe_flags(pairs.records, pairs.table).tolist() == expected
    zero = training_pairs(pair(), cost=(0.0, 0.0))
    assert unsafe_flags(zero.records, zero.table).tolist() == [[False, False]]
    assert unsafe_flags([], training_pairs().table).shape == (0, 2)


def test_pairs_without_a_label_are_left_out_with_their_draws():
    pairs = training_pairs(pair(), pair(), pair())
    draws = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    table = PairTable(**{**vars(pairs.table), "draw_M": draws})
    kept, objective = with_labels(table, torch.tensor([1.0, math.nan, 0.0]), OBJECTIVE, "dpo")
    assert kept.pair_M2.tolist() == [[0, 1], [4, 5]]
    assert kept.draw_M.tolist() == pytest.approx([0.1, 0.3])
    assert objective.target(kept, ZERO).tolist() == [1.0, 0.0]
    assert not objective.relabels
    assert objective.temperature(ZERO) == OBJECTIVE.temperature(ZERO)


def test_no_labels_at_all_are_refused():
    pairs = training_pairs(pair(), pair())
    with pytest.raises(DataError, match=r"^safe_dpo: none of 2 pairs .*method.preferences=scores"):
        with_labels(pairs.table, torch.tensor([math.nan, math.nan]), OBJECTIVE, "safe_dpo")


# select_pairs


@pytest.fixture
def method(config):
    """How a method of a run is trained, with labels by scores or by annotators."""

    def make(name, preferences="scores"):
        run = replace(config, method=replace(config.method, preferences=preferences, baselines=[name]))
        return run.resolve_method(name)

    return make


def test_a_method_on_scores_keeps_all_pairs_and_its_own_labels(method):
    pairs = training_pairs(pair(better=0), pair(), reward=(0.0, 1.0))
    table, objective = select_pairs(pairs, method("cdpo"), OBJECTIVE)
    assert table is pairs.table
    assert objective is OBJECTIVE
    assert select_pairs(pairs, method("dpo"), OBJECTIVE) == (table, OBJECTIVE)


def test_dpo_on_annotators_labels_keeps_the_pairs_that_have_one(method):
    pairs = training_pairs(pair(better=0), pair(safer=1), pair(better=1))
    table, objective = select_pairs(pairs, method("dpo", "human"), OBJECTIVE)
    assert table.pair_M2.tolist() == [[0, 1], [4, 5]]
    assert isinstance(objective, FixedLabels)
    assert objective.target(table, ZERO).tolist() == [0.0, 1.0]


def test_cdpo_has_no_annotators_labels(method):
    """Nobody labels by reward - lambda cost."""
    pairs = training_pairs(pair(better=0))
    assert select_pairs(pairs, method("cdpo", "human"), OBJECTIVE) == (pairs.table, OBJECTIVE)


def test_safe_dpo_swaps_and_drops_by_safety(method):
    """Annotators prefer response_1. Swapped where the other alone is safe, dropped where neither is; the others are kept."""
    safety = [(True, True), (True, False), (False, True), (False, False)]
    pairs = training_pairs(*[pair(better=1, safe_0=first, safe_1=second) for first, second in safety])
    table, objective = select_pairs(pairs, method("safe_dpo", "human"), OBJECTIVE)
    assert table.pair_M2.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert objective.target(table, ZERO).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("draw", "expected"), [(0.7, 1.0), (0.75, 0.0)])
def test_safe_dpo_on_scores_draws_its_labels_from_the_reward(method, draw, expected):
    """P(response_1) = sigmoid(1) = 0.731; neither is unsafe."""
    pairs = training_pairs(pair(), reward=(0.0, 1.0), cost=(-1.0, -1.0), draw=draw)
    table, objective = select_pairs(pairs, method("safe_dpo"), OBJECTIVE)
    assert objective.target(table, ZERO).tolist() == [expected]
