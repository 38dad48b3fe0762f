"""Packed rows by hand: who may look at whom, where positions restart, and which state predicts which token."""

import torch

from cdpo_lightning.text.packing import attention_mask, joined, pack, row_length

# Prompt 10 11, responses (20 21) and (30); beside it prompt 40, response (50), three positions of padding.
ROWS = [([10, 11], [[20, 21], [30]]), ([40], [(50,)])]


def test_mask_by_hand():
    """x: looks. The second response looks at the prompt and itself, not at the first; padding at padding."""
    drawn = """
        x.... | x....
        xx... | xx...
        xxx.. | ..x..
        xxxx. | ..xx.
        xx..x | ..xxx
    """
    expected = [[[c == "x" for c in half.strip()] for half in line.split("|")] for line in drawn.strip().splitlines()]
    mask = attention_mask(pack(ROWS))
    assert mask.shape == (2, 1, 5, 5)
    assert mask[:, 0].tolist() == [list(rows) for rows in zip(*expected, strict=True)]


def test_tokens_and_positions_by_hand():
    rows = pack(ROWS)
    assert rows.input_ids_BT.tolist() == [[10, 11, 20, 21, 30], [40, 50, 0, 0, 0]]
    assert rows.position_BT.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]


def test_sources_and_targets_by_hand():
    """The prompt's last state predicts the first token of every response; states count through the flattened batch."""
    rows = pack(ROWS)
    assert rows.source_N.tolist() == [1, 2, 1, 5]
    assert rows.target_N.tolist() == [20, 21, 30, 50]
    assert rows.response_N.tolist() == [0, 0, 1, 2]
    assert rows.responses == 3


def test_every_source_sees_its_prompt_and_the_response_so_far_and_nothing_else():
    """For 1, 2 and 5 responses: the tokens a source may look at, in order, are the prompt and what precedes its target."""
    batch = [([1, 2, 3], [[4, 5, 6]]), ([7], [[8, 9], [8]]), ([1, 2], [[3], [4, 5], [4, 5, 6, 7], [8], [9, 9]])]
    rows = pack(batch)
    length = rows.input_ids_BT.shape[1]
    seen = []
    for source in rows.source_N.tolist():
        b, t = divmod(source, length)
        look = attention_mask(rows)[b, 0, t]
        seen.append(rows.input_ids_BT[b][look].tolist())
        assert rows.position_BT[b][look].tolist() == list(range(int(look.sum())))
    assert seen == [[*p, *y[:i]] for p, responses in batch for y in responses for i in range(len(y))]


def test_row_length_is_that_of_the_packed_row():
    assert [row_length(*row) for row in ROWS] == [5, 2]
    assert pack(ROWS[:1]).input_ids_BT.shape == (1, 5)


def test_nobody_is_blind_and_nobody_sees_padding():
    """An empty row of the softmax would be nan, and reach the gradient."""
    rows = pack([([1], [[2], [3], [4]]), ([1], [[2]]), ([1], [[2, 3]])])
    mask, padding = attention_mask(rows)[:, 0], rows.segment_BT == -1
    assert int(padding.sum()) == 3
    assert mask.diagonal(dim1=1, dim2=2).all()
    assert not (mask & padding[:, None, :] & ~padding[:, :, None]).any()


def test_joined_rows_are_one_row_in_which_every_token_sees_what_it_saw():
    rows = pack([*ROWS, ([1, 2], [[3], [4, 5]])])
    one, real = joined(rows), rows.segment_BT.flatten() >= 0
    assert one.input_ids_BT.tolist() == [[10, 11, 20, 21, 30, 40, 50, 1, 2, 3, 4, 5]]
    assert one.position_BT[0].tolist() == rows.position_BT.flatten()[real].tolist()
    apart = torch.block_diag(*attention_mask(rows)[:, 0]).bool()[real][:, real]
    assert torch.equal(attention_mask(one)[0, 0], apart)
    for batch in (rows, one):
        assert batch.input_ids_BT.flatten()[batch.source_N].tolist() == [11, 20, 11, 40, 2, 2, 4]
    assert torch.equal(one.target_N, rows.target_N)
    assert one.responses == rows.responses


def test_moving_a_batch_keeps_it_whole():
    rows = pack(ROWS)
    moved = rows.to("cpu")
    assert moved.responses == 3
    assert all(torch.equal(getattr(moved, k), v) for k, v in vars(rows).items() if torch.is_tensor(v))
