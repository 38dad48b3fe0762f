"""Concatenated caches: keys and values of any widths, repeated, padded on the left, then extended."""

import torch

from cdpo_lightning.models.sampling.kv_cache import PreallocatedLayer


def test_caches_of_different_lengths_are_concatenated_and_extended() -> None:
    """Keys may be wider than values, as in multi-head latent attention."""
    draw = torch.Generator().manual_seed(0)
    given = [(torch.randn(2, 3, 4, 5, generator=draw), torch.randn(2, 1, 4, 2, generator=draw)),
             (torch.randn(1, 3, 6, 5, generator=draw), torch.randn(1, 1, 6, 2, generator=draw))]  # fmt: skip
    parts = [PreallocatedLayer(), PreallocatedLayer()]
    for part, (keys, values) in zip(parts, given, strict=True):
        part.update(keys, values)
    whole = PreallocatedLayer()
    whole.fill_from(parts, 2, 6)
    assert (whole.keys.shape, whole.values.shape) == ((6, 3, 6, 5), (6, 1, 6, 2))
    assert whole.get_seq_length() == 6
    for row, (number, own) in enumerate([(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]):
        for result, right in zip((whole.keys, whole.values), given[number], strict=True):
            length = right.shape[2]
            assert result[row, :, 6 - length :].equal(right[own])
            assert not result[row, :, : 6 - length].any()
    new = torch.ones(6, 3, 1, 5), torch.ones(6, 1, 1, 2)
    before = whole.keys.data_ptr()
    keys, values = whole.update(*new)
    assert keys.data_ptr() == before, "in place"
    assert keys[:, :, -1:].equal(new[0])
    assert values[:, :, -1:].equal(new[1])
    assert keys.shape[2] == 7
