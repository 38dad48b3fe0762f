"""Packed rows by hand: the attention mask, the positions, and which hidden state predicts which token."""

import torch

from cdpo_lightning.text.packing import attention_mask, join_rows, pack, row_length, unpack

# First row: prompt 10 11, responses (20 21) and (30). Second row: prompt 40, response (50), three positions of padding.
ROWS = [([10, 11], [[20, 21], [30]]), ([40], [(50,)])]


def test_the_attention_mask():
    """x: attends. The second response attends to the prompt and itself, not to the first response; padding to padding."""
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


def test_tokens_and_positions():
    rows = pack(ROWS)
    assert rows.input_ids_BT.tolist() == [[10, 11, 20, 21, 30], [40, 50, 0, 0, 0]]
    assert rows.position_BT.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]


def test_source_states_and_target_tokens():
    """The last state of the prompt predicts the first token of every response; indices are into the flattened batch."""
    rows = pack(ROWS)
    assert rows.source_N.tolist() == [1, 2, 1, 5]
    assert rows.target_N.tolist() == [20, 21, 30, 50]
    assert rows.response_N.tolist() == [0, 0, 1, 2]
    assert rows.responses == 3


def test_every_source_attends_to_its_prompt_and_the_response_so_far_only():
    """For 1, 2 and 5 responses: the tokens a source attends to, in order, are the prompt and the tokens before its target."""
    batch = [([1, 2, 3], [[4, 5, 6]]), ([7], [[8, 9], [8]]), ([1, 2], [[3], [4, 5], [4, 5, 6, 7], [8], [9, 9]])]
    rows = pack(batch)
    length = rows.input_ids_BT.shape[1]
    seen = []
    for source in rows.source_N.tolist():
        b, t = divmod(source, length)
        visible = attention_mask(rows)[b, 0, t]
        seen.append(rows.input_ids_BT[b][visible].tolist())
        assert rows.position_BT[b][visible].tolist() == list(range(int(visible.sum())))
    assert seen == [[*p, *y[:i]] for p, responses in batch for y in responses for i in range(len(y))]


def test_row_length_is_the_number_of_tokens_of_the_packed_row():
    assert [row_length(*row) for row in ROWS] == [5, 2]
    assert pack(ROWS[:1]).input_ids_BT.shape == (1, 5)


def test_every_position_attends_to_something_and_no_token_to_padding():
    """An empty row of the softmax would be nan, also in the gradient."""
    rows = pack([([1], [[2], [3], [4]]), ([1], [[2]]), ([1], [[2, 3]])])
    mask, padding = attention_mask(rows)[:, 0], rows.segment_BT == -1
    assert int(padding.sum()) == 3
    assert mask.diagonal(dim1=1, dim2=2).all()
    assert not (mask & padding[:, None, :] & ~padding[:, :, None]).any()


def test_in_the_joined_row_every_token_attends_to_the_same_tokens():
    rows = pack([*ROWS, ([1, 2], [[3], [4, 5]])])
    one, real = join_rows(rows), rows.segment_BT.flatten() >= 0
    assert one.input_ids_BT.tolist() == [[10, 11, 20, 21, 30, 40, 50, 1, 2, 3, 4, 5]]
    assert one.position_BT[0].tolist() == rows.position_BT.flatten()[real].tolist()
    separate = torch.block_diag(*attention_mask(rows)[:, 0]).bool()[real][:, real]
    assert torch.equal(attention_mask(one)[0, 0], separate)
    for batch in (rows, one):
        assert batch.input_ids_BT.flatten()[batch.source_N].tolist() == [11, 20, 11, 40, 2, 2, 4]
    assert torch.equal(one.target_N, rows.target_N)
    assert one.responses == rows.responses


def test_unpacked_rows_are_those_of_one_response_each():
    single = unpack(pack(ROWS))
    expected = pack([([10, 11], [[20, 21]]), ([10, 11], [[30]]), ([40], [[50]])])
    assert all(torch.equal(getattr(single, name), value) for name, value in vars(expected).items() if torch.is_tensor(value))
    assert (single.responses, single.tokens) == (3, 9)


def test_moving_a_batch_keeps_every_field():
    rows = pack(ROWS)
    moved = rows.to("cpu")
    assert moved.responses == 3
    assert all(torch.equal(getattr(moved, k), v) for k, v in vars(rows).items() if torch.is_tensor(v))
