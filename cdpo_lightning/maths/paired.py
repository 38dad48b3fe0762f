"""Two policies on the same prompts: their difference with an interval, and how often one beats the other.

Shapes: P prompts, K samples of each. Prompts are what is resampled: the samples of one prompt resemble one another, and
both policies answer the same prompts, so that what makes a prompt hard for both cancels.
"""

import math

import torch
from torch import Tensor

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths.statistics import Estimate

RESAMPLES = 4000
_AT_ONCE = 2**22  # numbers drawn side by side


def cluster_means(value: Tensor, cluster: Tensor) -> Tensor:
    """The mean of [N] values of each cluster, [P], by ascending cluster, float64."""
    _, index, count = torch.unique(cluster, return_inverse=True, return_counts=True)
    total: Tensor = torch.zeros(len(count), dtype=torch.float64).index_add(0, index, value.double())
    return total.div(count)


def paired_bootstrap(difference: Tensor, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The mean of [P] differences, one a prompt, with the 95 % percentile interval of the bootstrap over prompts (Efron 1979).

    `se` is the standard deviation of the resampled means. A single prompt says nothing about the others: its interval is infinite.

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
    """P(a sample of the first scores above one of the second) for each prompt [P], ties counting one half, in [0, 1]."""
    difference = first_PK[:, :, None] - second_PK[:, None, :]
    return ((difference.sign() + 1) / 2).double().mean((1, 2))
