"""Paired comparisons: by hand, against scipy, and how often the interval holds the truth."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths.statistics import cluster_means, paired_bootstrap, win_rates


def test_cluster_means_by_hand():
    """Clusters 2 and 7 in any order, of different sizes: (1 + 3)/2 and 5."""
    result = cluster_means(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([2, 7, 2]))
    assert result.tolist() == [2.0, 5.0]


def test_a_difference_that_is_the_same_everywhere_is_certain():
    """What makes prompts hard for both policies cancels."""
    result = paired_bootstrap(torch.full((9,), 0.25), seed=0)
    assert (result.mean, result.se, result.low, result.high, result.clusters) == (0.25, 0.0, 0.25, 0.25, 9)


def test_the_interval_is_scipys():
    """The same percentile bootstrap with other draws: equal up to the noise of 20,000 resamples."""
    difference = torch.randn(60, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = scipy.stats.bootstrap(
        (difference.numpy(),), lambda x, axis: x.mean(axis), n_resamples=20_000, method="percentile", rng=0
    )
    result = paired_bootstrap(difference, seed=0, resamples=20_000)
    assert result.mean == pytest.approx(float(difference.mean()))
    assert (result.low, result.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.015)
    assert result.se == pytest.approx(theirs.standard_error, rel=0.03)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """400 worlds of 40 prompts with mean 0.3: 95 % of them, less what the percentile bootstrap lacks at this size, +- 2.5 %."""
    generator = torch.Generator().manual_seed(0)
    worlds = 0.3 + torch.randn(400, 40, generator=generator, dtype=torch.float64)
    result = [paired_bootstrap(world, seed=i, resamples=1000) for i, world in enumerate(worlds)]
    share = sum(one.low <= 0.3 <= one.high for one in result) / len(result)
    assert 0.91 <= share <= 0.97


def test_the_draws_are_the_seeds():
    difference = torch.arange(10.0)
    assert paired_bootstrap(difference, 1) == paired_bootstrap(difference, 1) != paired_bootstrap(difference, 2)


def test_one_prompt_says_nothing_about_the_others():
    result = paired_bootstrap(torch.tensor([2.0]), 0)
    assert (result.mean, result.low, result.high) == (2.0, -math.inf, math.inf)


@pytest.mark.parametrize("difference", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_number_is_refused(difference):
    with pytest.raises(NumericsError):
        paired_bootstrap(torch.tensor(difference), 0)


def test_win_rates_by_hand():
    """First prompt: of 1, 3 against 2, 3 are 3 > 2 a win, 3 = 3 half, two losses. Second: all wins."""
    result = win_rates(torch.tensor([[1.0, 3.0], [9.0, 9.0]]), torch.tensor([[2.0, 3.0], [0.0, 1.0]]))
    assert result.tolist() == [(1 + 0.5) / 4, 1.0]


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=5), st.lists(st.floats(-9, 9), min_size=2, max_size=5))
def test_who_wins_against_the_other_loses_against_oneself(first, second):
    one, two = torch.tensor([first]), torch.tensor([second])
    assert float(win_rates(one, two) + win_rates(two, one)) == pytest.approx(1)
    assert float(win_rates(one, one)) == 0.5
