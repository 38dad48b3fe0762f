"""Estimates against hand values, scipy and the textbook special cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cdpo_lightning.errors import ConfigError, NumericsError
from cdpo_lightning.maths import statistics

torch.set_num_threads(1)

FEW = settings(deadline=None, max_examples=25)
VALUES = st.lists(st.floats(-100, 100), min_size=3, max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64))
SUMMARIES = [
    lambda value: statistics.clustered_mean(value, torch.arange(len(value))),
    lambda value: statistics.within_cluster_variance(value, torch.zeros(len(value), dtype=torch.long)),
    statistics.conditional_value_at_risk,
    lambda value: statistics.auroc(value, torch.arange(len(value))),
    lambda value: statistics.pair_accuracy(value, torch.zeros_like(value)),
]


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 199, 200, 201, 500, 1999, 100_000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_t_quantile_against_scipy(degrees, confidence):
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert statistics.t_quantile(degrees, confidence) == pytest.approx(expected, rel=1e-7)


@FEW
@given(VALUES)
def test_one_response_per_prompt_gives_the_textbook_interval(value):
    """Clusters of one: scipy's standard error of the mean and t interval."""
    estimate = statistics.clustered_mean(value, torch.arange(len(value)) * 7 - 3)
    se = stats.sem(value.numpy())
    half = stats.t.ppf(0.975, len(value) - 1) * se
    assert estimate.mean == pytest.approx(value.mean().item(), abs=1e-9)
    assert estimate.se == pytest.approx(se, abs=1e-9)
    assert (estimate.low, estimate.high) == pytest.approx((estimate.mean - half, estimate.mean + half), abs=1e-6)
    assert (estimate.count, estimate.clusters) == (len(value), len(value))


@FEW
@given(VALUES, st.integers(2, 5))
def test_copies_of_a_response_carry_no_information(value, copies):
    """The same answer five times is one answer: the estimate is that of the distinct ones. Naive errors shrink."""
    prompt = torch.arange(len(value))
    once = statistics.clustered_mean(value, prompt)
    often = statistics.clustered_mean(value.repeat_interleave(copies), prompt.repeat_interleave(copies))
    assert (often.mean, often.se, often.high) == pytest.approx((once.mean, once.se, once.high), abs=1e-6)


def test_clustered_mean_of_unequal_prompts_by_hand():
    """Values 1, 3 | 8: mean 4, residual sums -4 and 4, G = 2: se^2 = 2/1 * 32/9, so se = 8/3; t_1 = 12.7062."""
    estimate = statistics.clustered_mean(torch.tensor([1.0, 8.0, 3.0]), torch.tensor([5, 9, 5]))
    assert estimate.mean == pytest.approx(4)
    assert estimate.se == pytest.approx(8 / 3)
    assert estimate.high == pytest.approx(4 + 12.7062 * 8 / 3, rel=1e-5)


def test_clustering_reproduces_the_doubt_about_the_published_cost():
    """Standard deviation 16.70, 2,000 prompts, 5 responses: 0.167 if independent, 0.373 if identical (method.md)."""
    spread = torch.tensor([16.70, -16.70], dtype=torch.float64).repeat(1000)
    identical = statistics.clustered_mean(spread.repeat_interleave(5), torch.arange(2000).repeat_interleave(5))
    independent = statistics.clustered_mean(spread.repeat_interleave(5), torch.arange(10_000))
    assert identical.se == pytest.approx(16.70 / math.sqrt(2000), rel=1e-3)
    assert independent.se == pytest.approx(16.70 / math.sqrt(10_000), rel=1e-3)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """400 studies of 8 prompts x 3 alike responses around 0: 95 % cover, give or take 3 binomial errors of 1.1 %."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.arange(8).repeat_interleave(3)
    noise = torch.randn(400, 8, 3, generator=generator) * 0.3 + torch.randn(400, 8, 1, generator=generator)
    studies = [statistics.clustered_mean(study.flatten(), prompt) for study in noise]
    assert sum(study.low <= 0 <= study.high for study in studies) / 400 == pytest.approx(0.95, abs=0.033)


def test_a_single_prompt_has_an_infinite_error():
    estimate = statistics.clustered_mean(torch.tensor([1.0, 3.0]), torch.tensor([4, 4]))
    assert (estimate.mean, estimate.se, estimate.low, estimate.high) == (2.0, math.inf, -math.inf, math.inf)


def test_within_cluster_variance_by_hand():
    """Prompt 3: values 0, 2 -> 2. Prompt 8: 1, 1, 4 -> 3. Prompt 5 has one value and is left out: (2 + 3) / 2."""
    value, prompt = torch.tensor([0.0, 1.0, 99.0, 2.0, 1.0, 4.0]), torch.tensor([3, 8, 5, 3, 8, 8])
    assert statistics.within_cluster_variance(value, prompt) == pytest.approx(2.5)


@FEW
@given(VALUES, st.floats(-1000, 1000))
def test_within_cluster_variance_ignores_the_level_of_a_prompt(value, shift):
    """A harder prompt is not a more uncertain one: the answer is the mean of the prompts' own sample variances."""
    other = value.flip(0) * 0.5
    both = torch.cat([value, other + shift])
    prompt = torch.arange(2).repeat_interleave(len(value))
    expected = (value.var() + other.var()) / 2
    assert statistics.within_cluster_variance(both, prompt) == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)


def test_a_variance_without_two_samples_is_refused():
    with pytest.raises(NumericsError, match="two per prompt"):
        statistics.within_cluster_variance(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))


def test_conditional_value_at_risk_by_hand():
    """1 .. 20: the worst tenth is 19 and 20. Of 1 .. 15 it is one value and a half: (15 + 14 / 2) / 1.5."""
    assert statistics.conditional_value_at_risk(torch.arange(1.0, 21.0)) == pytest.approx(19.5)
    assert statistics.conditional_value_at_risk(torch.arange(1.0, 16.0)) == pytest.approx(22 / 1.5)
    assert statistics.conditional_value_at_risk(torch.tensor([3.0, 7.0])) == pytest.approx(7)


@FEW
@given(VALUES, st.floats(0, 0.95))
def test_conditional_value_at_risk_is_the_rockafellar_uryasev_minimum(value, level):
    """CVaR = min_t t + E[(v - t)_+] / (1 - level), and the minimum is at one of the values."""
    candidates = [t + (value - t).clamp_min(0).mean() / (1 - level) for t in value]
    expected = min(float(candidate) for candidate in candidates)
    assert statistics.conditional_value_at_risk(value, level) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("level", [-0.1, 1.0, math.nan])
def test_a_level_outside_its_range_is_refused(level):
    with pytest.raises(ConfigError, match="level"):
        statistics.conditional_value_at_risk(torch.ones(3), level)


@FEW
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_against_scipy_with_many_ties(rows):
    score = torch.tensor([float(s) for s, _ in rows])
    label = torch.tensor([y for _, y in rows])
    positive, negative = score[label], score[~label]
    if not len(positive) or not len(negative):
        assert math.isnan(statistics.auroc(score, label))
        return
    u = stats.mannwhitneyu(positive.numpy(), negative.numpy(), method="asymptotic").statistic
    assert statistics.auroc(score, label) == pytest.approx(u / (len(positive) * len(negative)))


def test_auroc_takes_signs_as_labels():
    """Unsafe (+1) scores 3 and 1 against safe (-1) 2 and 0: three of four comparisons are won."""
    assert statistics.auroc(torch.tensor([3.0, 2, 1, 0]), torch.tensor([1, -1, 1, -1])) == pytest.approx(0.75)


def test_accuracies_count_ties_as_one_half():
    """Won, lost, tied, won: 2.5 of 4. Costs 2, -1, 0, 5 signed +, +, -, unknown: 1.5 of 3."""
    assert statistics.pair_accuracy(torch.tensor([2.0, 0, 1, 9]), torch.tensor([1.0, 1, 1, 1])) == 0.625
    assert statistics.sign_accuracy(torch.tensor([2.0, -1, 0, 5]), torch.tensor([1, 1, -1, 0])) == 0.5
    assert math.isnan(statistics.sign_accuracy(torch.ones(2), torch.zeros(2)))


@pytest.mark.parametrize("summary", SUMMARIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(summary, bad):
    with pytest.raises(NumericsError, match="1 of 3 values"):
        summary(torch.tensor([1.0, bad, 2.0]))


@pytest.mark.parametrize("summary", SUMMARIES)
def test_no_values_are_refused(summary):
    with pytest.raises(NumericsError, match="no values"):
        summary(torch.zeros(0))


def test_the_covariance_within_clusters_by_hand():
    """Cluster 0: (1, 3) and (2, 6), covariance 1/2 * 2 * ... = 1 * 3 / 2; cluster 1: constant second value; their mean is 0.75."""
    values = torch.tensor([[1.0, 2.0, 5.0, 9.0], [3.0, 6.0, 1.0, 1.0]])
    result = statistics.within_cluster_covariance(values, torch.tensor([7, 7, 2, 2]))
    torch.testing.assert_close(result, torch.tensor([[(0.5 + 8) / 2, 0.75], [0.75, 4.5 / 2]], dtype=torch.float64))
