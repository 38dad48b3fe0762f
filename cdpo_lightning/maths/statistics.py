"""Statistics of samples and scores: clustered means and covariances, CVaR, paired bootstrap, win rates, AUROC, accuracy.

Shapes: N values; `cluster` [N] long names each value's prompt, in any numbering. Computed in float64.
"""

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from cdpo_lightning.errors import ConfigError, NumericsError

RESAMPLES = 4000
_AT_ONCE = 2**22  # numbers drawn side by side


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error and its 95 % interval, in the value's unit: `count` values, `clusters` prompts."""

    mean: float
    se: float
    low: float
    high: float
    count: int
    clusters: int


def clustered_mean(value: Tensor, cluster: Tensor) -> Estimate:
    """Return the mean of [N] values with a cluster-robust standard error and a 95 % t interval, in the value's unit.

    se^2 = G/(G-1) sum_g (sum_{i in g} (v_i - mean))^2 / N^2 with G clusters, t with G - 1 degrees of freedom (Liang
    and Zeger 1986). Responses to one prompt are correlated; counting them as independent understates the error.
    With a single cluster the error and the interval are infinite.

    Raises:
        NumericsError: there is no value, or one is not finite.
    """
    value = _finite(value)
    mean = value.mean()
    index, clusters = _compact(cluster)
    residual = value.new_zeros(clusters).index_add(0, index, value - mean)
    if clusters == 1:
        return Estimate(float(mean), math.inf, -math.inf, math.inf, len(value), 1)
    se = float((residual.square().sum() * clusters / (clusters - 1)).sqrt()) / len(value)
    half = t_quantile(clusters - 1) * se
    return Estimate(float(mean), se, float(mean) - half, float(mean) + half, len(value), clusters)


def within_cluster_covariance(values: Tensor, cluster: Tensor) -> Tensor:
    """Return E_x Cov(v_j, v_k | x) of [C, N] values, [C, C]: the mean, over clusters of two or more, of the unbiased covariance.

    Raises:
        NumericsError: a value is not finite, or no cluster has two members.
    """
    values = _finite(values)
    index, clusters = _compact(cluster)
    count = torch.bincount(index, minlength=clusters).double()
    mean = values.new_zeros(len(values), clusters).index_add(1, index, values) / count
    centred = values - mean[:, index]
    products = (centred[:, None] * centred[None, :]).flatten(0, 1)
    total = values.new_zeros(len(products), clusters).index_add(1, index, products)
    if not bool((count > 1).any()):
        raise NumericsError(f"none of {clusters} prompts has two samples; a variance within prompts needs at least two per prompt")
    return (total[:, count > 1] / (count[count > 1] - 1)).mean(1).view(len(values), len(values))


def within_cluster_variance(value: Tensor, cluster: Tensor) -> float:
    """Return E_x Var(v|x) of [N] values, in the value's unit squared, as `within_cluster_covariance`.

    Raises:
        NumericsError: a value is not finite, or no cluster has two members.
    """
    return float(within_cluster_covariance(value[None], cluster))


def conditional_value_at_risk(value: Tensor, level: float = 0.9) -> float:
    """Return the mean of the largest 1 - level share of [N] values, in their unit (Rockafellar and Uryasev 2000).

    The boundary value counts with the fraction of it that falls inside the share. Level 0 is the mean.

    Raises:
        ConfigError: level is outside [0, 1).
        NumericsError: there is no value, or one is not finite.
    """
    if not 0 <= level < 1:
        raise ConfigError(f"level: got {level}, expected 0 <= level < 1, e.g. 0.9 for the worst tenth")
    descending = _finite(value).sort(descending=True).values
    size = (1 - level) * len(descending)
    weight = (size - torch.arange(len(descending), dtype=torch.float64, device=descending.device)).clamp(0, 1)
    return float((weight * descending).sum()) / size


def cluster_means(value: Tensor, cluster: Tensor) -> Tensor:
    """Return the mean of the values [N] of each cluster, [P] float64, in ascending order of the clusters."""
    _, index, count = torch.unique(cluster, return_inverse=True, return_counts=True)
    total: Tensor = torch.zeros(len(count), dtype=torch.float64).index_add(0, index, value.double())
    return total.div(count)


def paired_bootstrap(difference: Tensor, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Return the mean of [P] differences, one per prompt, with the 95 % percentile interval of the bootstrap (Efron 1979).

    Prompts are resampled; `se` is the standard deviation of the resampled means. With one prompt error and interval are infinite.

    Raises:
        NumericsError: there is no difference, or one is not finite.
    """
    if not len(difference) or not bool(difference.isfinite().all()):
        raise NumericsError(f"{len(difference)} differences between two policies: expected one a prompt, all of them finite")
    difference, prompts = difference.double(), len(difference)
    mean = float(difference.mean())
    if prompts == 1:
        return Estimate(mean, math.inf, -math.inf, math.inf, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    step = max(1, _AT_ONCE // prompts)
    sizes = [min(step, resamples - done) for done in range(0, resamples, step)]
    drawn = [difference[torch.randint(prompts, (size, prompts), generator=generator)].mean(1) for size in sizes]
    means = torch.cat(drawn)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(mean, float(means.std()), low, high, prompts, prompts)


def win_rates(first_PK: Tensor, second_PK: Tensor) -> Tensor:
    """Return P(a sample of the first policy scores above one of the second) by prompt, [P], in [0, 1]; ties count one half."""
    difference = first_PK[:, :, None] - second_PK[:, None, :]
    return ((difference.sign() + 1) / 2).double().mean((1, 2))


def auroc(score: Tensor, label: Tensor) -> float:
    """Return P(score of a positive > score of a negative), in [0, 1]; ties count one half (Mann-Whitney).

    `score` [N]; `label` [N], positive where > 0, so {0, 1} and {-1, +1} are both allowed. The result is nan without both classes.

    Raises:
        NumericsError: there is no score, or one is not finite.
    """
    score = _finite(score)
    positive, negative = score[label > 0], score[label <= 0].sort().values
    if not len(positive) or not len(negative):
        return math.nan
    below = torch.searchsorted(negative, positive)
    not_above = torch.searchsorted(negative, positive, right=True)
    return float((below + not_above).double().mean()) / (2 * len(negative))


def pair_accuracy(score_preferred: Tensor, score_other: Tensor) -> float:
    """Return the share of pairs whose preferred response scores higher, in [0, 1]; ties count one half.

    Raises:
        NumericsError: there is no pair, or a score is not finite.
    """
    difference = _finite(score_preferred - score_other)
    return float((difference.sign() + 1).mean()) / 2


def sign_accuracy(cost: Tensor, sign: Tensor) -> float:
    """Return the share of labelled responses whose cost has the labelled sign; cost 0 counts one half; nan without labels.

    `sign` [N]: +1 unsafe, -1 safe, 0 unknown and left out.

    Raises:
        NumericsError: a labelled cost is not finite.
    """
    known = sign != 0
    return pair_accuracy(cost[known] * sign[known], torch.zeros_like(cost[known])) if bool(known.any()) else math.nan


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Return the t with P(|T| <= t) = confidence for Student's T with `degrees` degrees of freedom, dimensionless.

    It is computed with the function that scipy.stats.t.ppf calls: importing scipy.stats would take a second more.
    """
    assert degrees >= 1, degrees
    return float(stdtrit(degrees, (1 + confidence) / 2))


def _compact(cluster: Tensor) -> tuple[Tensor, int]:
    names, index = torch.unique(cluster, return_inverse=True)
    return index, len(names)


def _finite(value: Tensor) -> Tensor:
    if value.numel() == 0:
        raise NumericsError("no values to summarise; expected at least one")
    if not bool(value.isfinite().all()):
        bad = int((~value.isfinite()).sum())
        raise NumericsError(f"{bad} of {value.numel()} values are not finite; a summary that skipped them would hide the fault")
    return value.detach().double()
