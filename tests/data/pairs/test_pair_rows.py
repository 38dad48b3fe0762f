"""Pairs of a prompt gathered into rows: every pair once, every response once a row."""

import pytest
import torch

from cdpo_lightning.data.pairs.pair_rows import group_rows, prompt_groups
from cdpo_lightning.data.pairs.pair_table import PairTable, draws


def table(pairs, prompt, responses):
    return PairTable(
        prompts=((7,), (8,), (9, 9)),
        responses=tuple(responses),
        prompt_N=torch.tensor(prompt),
        scores={},
        reference_logp_N=torch.zeros(len(prompt)),
        pair_M2=torch.tensor(pairs),
        draw_M=draws(len(pairs), 0),
    )


def large():
    """Prompt 0 has 9 pairs, prompt 1 none, prompt 2 has 4; response i is the token i."""
    pairs = [(i, i + 1) for i in range(9)] + [(10, 11), (12, 11), (10, 12), (11, 13)]
    return table(pairs, [0] * 10 + [2] * 4, [(i,) for i in range(14)])


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_every_pair_once_in_groups_of_one_prompt(size):
    groups = prompt_groups(large(), size, seed=0, epoch=0)
    assert sorted(pair for group in groups for pair in group) == list(range(13))
    assert all(1 <= len(group) <= size and len({pair < 9 for pair in group}) == 1 for group in groups)
    assert len(groups) == -(-9 // size) + -(-4 // size)


def test_groups_depend_on_seed_and_epoch_alone():
    first = prompt_groups(large(), 3, 1, 2)
    torch.manual_seed(5)
    assert prompt_groups(large(), 3, 1, 2) == first
    assert prompt_groups(large(), 3, 1, 3) != first
    assert prompt_groups(large(), 3, 2, 2) != first


def test_a_row_by_hand():
    """Pairs (0, 1), (2, 0), (3, 1) of one prompt; responses 1 and 3 are the same text and stand once."""
    made = table([(0, 1), (2, 0), (3, 1), (4, 5)], [2, 2, 2, 2, 0, 0], [(5,), (6, 6), (7,), (6, 6), (1,), (2,)])
    row, other = group_rows(made, [[1, 0, 2], [3]])
    assert (row.number, row.prompt, other.number, other.prompt) == (2, (9, 9), 0, (7,))
    assert row.responses == [(7,), (5,), (6, 6)]
    assert row.members == [2, 0, 1]
    assert row.pairs == [1, 0, 2]
    assert row.local == [(0, 1), (1, 2), (2, 2)]


def test_rows_keep_each_pairs_responses_in_stored_order():
    made = large()
    for row in group_rows(made, prompt_groups(made, 4, 0, 0)):
        assert len(set(row.responses)) == len(row.responses) == len(row.members)
        for pair, indices in zip(row.pairs, row.local, strict=True):
            assert [row.responses[i] for i in indices] == [made.responses[i] for i in made.pair_M2[pair].tolist()]
            assert [row.members[i] for i in indices] == made.pair_M2[pair].tolist()
