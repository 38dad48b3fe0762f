"""Batches: their order depends on (seed, epoch) alone, every row is in one batch, and batches have similar lengths."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdpo_lightning.data.batching import LengthBuckets, ResumableLoader, choose_prompts, sorted_batches

LENGTHS = [(37 * i) % 101 for i in range(500)]


def batches(seed=0, epoch=0, lengths=LENGTHS, batch_size=8):
    return list(LengthBuckets(lengths, batch_size, seed, epoch))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_every_row_is_in_one_batch_and_len_is_the_number_of_batches(lengths, batch_size, seed, epoch):
    sampler = LengthBuckets(lengths, batch_size, seed, epoch)
    result = list(sampler)
    assert sorted(i for batch in result for i in batch) == list(range(len(lengths)))
    assert len(result) == len(sampler)
    assert sum(len(batch) < batch_size for batch in result) <= 1


def test_the_order_depends_on_seed_and_epoch_alone():
    first = batches(seed=3, epoch=4)
    torch.manual_seed(99)
    batches(seed=3, epoch=3)
    torch.rand(7)
    assert batches(seed=3, epoch=4) == first
    sampler = LengthBuckets(LENGTHS, 8, 3, 4)
    assert list(sampler) == list(sampler) == first


def test_every_seed_and_epoch_has_a_different_order():
    orders = [batches(seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({str(order) for order in orders}) == 25


def test_the_global_random_state_does_not_change():
    before = torch.random.get_rng_state()
    batches()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batches_have_similar_lengths():
    """The batches have less than a fifth of the padding of random batches, and are not ordered by length."""

    def padding(of):
        return sum(max(LENGTHS[i] for i in b) * len(b) - sum(LENGTHS[i] for i in b) for b in of)

    order = torch.randperm(len(LENGTHS)).tolist()
    random_batches = [order[i : i + 8] for i in range(0, len(order), 8)]
    assert padding(batches()) < 0.2 * padding(random_batches)
    longest = [max(LENGTHS[i] for i in b) for b in batches()]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


@pytest.mark.parametrize("batch_size", [1, 3, 500, 1000])
def test_sorted_batches_are_longest_first(batch_size):
    result = sorted_batches(LENGTHS, batch_size)
    flat = [LENGTHS[i] for batch in result for i in batch]
    assert flat == sorted(LENGTHS, reverse=True)
    assert sorted(i for batch in result for i in batch) == list(range(500))
    assert {len(b) for b in result[:-1]} <= {batch_size}


def loader():
    return ResumableLoader(list(range(len(LENGTHS))), LengthBuckets(LENGTHS, 8, 3, 4), list)


@pytest.mark.parametrize("taken", [0, 1, 7, 62])
def test_a_resumed_loader_continues_after_the_last_batch(taken):
    whole, first, second = list(loader()), loader(), loader()
    begun = iter(first)
    head = [next(begun) for _ in range(taken)]
    second.load_state_dict(first.state_dict())
    assert head + list(second) == whole
    assert len(second) == len(whole), "the length is that of the whole epoch"
    assert second.state_dict() == {"batches": len(whole)}


def test_a_resumed_loader_reads_the_next_epoch_from_the_start():
    resumed = loader()
    resumed.load_state_dict({"batches": 5})
    assert len(list(resumed)) == 58
    assert list(resumed) == list(loader())


def test_choose_prompts():
    assert choose_prompts(5, 0, 1).tolist() == choose_prompts(5, 5, 1).tolist() == choose_prompts(5, 9, 1).tolist()
    assert choose_prompts(5, 0, 1).tolist() == [0, 1, 2, 3, 4]
    chosen = choose_prompts(100, 10, 1).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10
    assert choose_prompts(100, 10, 1).tolist() == chosen != choose_prompts(100, 10, 2).tolist()


def test_every_prompt_is_chosen_as_often_as_the_others():
    """1000 rounds of 3 of 10: 300 each, standard error sqrt(1000 0.3 0.7) = 14.5."""
    count = torch.cat([choose_prompts(10, 3, seed) for seed in range(1000)]).bincount(minlength=10)
    assert (count - 300).abs().max() < 4.5 * 14.5
