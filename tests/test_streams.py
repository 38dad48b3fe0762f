"""The streams of random numbers are independent and stay what they are."""

import itertools

import torch

from cdpo_lightning.streams import Stream, generator, stream_seed


def test_no_two_streams_of_neighbouring_seeds_have_one_seed():
    every = [
        stream_seed(seed, stream, *counters)
        for seed, stream, counters in itertools.product(range(20), Stream, [(), (0,), (1,), (2,), (1, 0)])
    ]
    assert len(set(every)) == len(every)
    assert all(0 <= one < 2**63 for one in every)


def test_streams_are_numpys_seed_sequence_of_the_purpose_and_the_counters():
    """Literals: numpy promises that SeedSequence gives the same on every machine and in every version."""
    assert stream_seed(0, Stream.WORLD) == 4334430513956379144
    assert stream_seed(7, Stream.LABEL_DRAWS, 3) == 2940550525007423869
    drawn = [torch.rand(3, generator=generator(7, Stream.LABEL_DRAWS, n)).tolist() for n in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
