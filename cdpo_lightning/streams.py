"""The streams of random numbers of a run, one per purpose: independent of each other, and reproducible from the run's seed.

numpy's `SeedSequence` spreads (seed, purpose, counters) over the seeds of the generators, so that no two streams overlap, whatever
the seed, the round or the epoch.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The purpose of a stream. The values are part of every result: never renumber them, only append."""

    WORLD = 0  # rewards and costs of the closed-form world
    DEMONSTRATIONS = 1  # counter: 0 training, 1 held out
    PREFERENCES = 2  # counter: 0 training, 1 held out
    INITIAL_WEIGHTS = 3
    ADAPTERS = 4
    TRAINING = 5  # torch's global generator during a stage
    BATCH_ORDER = 6  # counter: epoch
    PAIR_GROUPS = 7  # counter: epoch
    LABEL_DRAWS = 8  # of Bernoulli labels; counter: dual round of on-policy pairs, 0 for the data set's
    DUAL_PROMPTS = 9  # counter: dual round, 0 before training
    DUAL_SAMPLES = 10  # counter: dual round, 0 before training
    DUAL_PAIRING = 11  # counter: dual round
    SAFETY_ORACLE = 12  # counter: dual round
    DEMONSTRATION_ORDER = 13  # of those that accompany PPO's episodes; counter: epoch
    EVALUATION_SAMPLES = 14
    BOOTSTRAP = 15
    ANCHOR_PROMPTS = 16  # counters: epoch, number of the batch's first pair


def stream_seed(seed: int, stream: Stream, *counters: int) -> int:
    """Return the seed of one stream, an integer in [0, 2**63)."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), *counters))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, stream: Stream, *counters: int) -> torch.Generator:
    """Return torch's generator of one stream, on the CPU."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, *counters))
