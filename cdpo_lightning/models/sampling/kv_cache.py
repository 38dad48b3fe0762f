"""A key-value cache with spare positions, which writes a new token in place; transformers' own copies all earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_SPARE_POSITIONS = 64  # free positions of a new buffer


class PreallocatedLayer(DynamicLayer):
    """A layer whose keys and values [B, heads, T, D] are views of larger buffers.

    A method of the base class that replaces the views makes the next `update` copy them into new buffers.
    """

    keys: Tensor
    values: Tensor
    _storage: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the new keys and values [B, heads, t, D]; return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._storage is None or self._storage[0].shape[-2] < end:
            self._storage = (_grown_buffer(self.keys, key_states, start, end), _grown_buffer(self.values, value_states, start, end))
        keys, values = self._storage
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._storage = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the sequences with these indices."""
        super().batch_select_indices(indices)
        self._storage = None

    def fill_from(self, parts: Sequence[PreallocatedLayer], repeats: int, length: int) -> None:
        """Take over the sequences of all parts, each `repeats` times, padded on the left to `length`; empty the parts.

        Emptying them one by one keeps the memory at about that of one copy.
        """
        rows = repeats * sum(part.keys.shape[0] for part in parts)
        # Zeros: padding is masked, but has to be finite.
        shapes = ((old, (rows, old.shape[1], length + _SPARE_POSITIONS, old.shape[3])) for old in (parts[0].keys, parts[0].values))
        keys, values = (old.new_zeros(shape) for old, shape in shapes)
        buffers = keys, values
        row = 0
        for part in parts:
            count, start = repeats * part.keys.shape[0], length - part.keys.shape[2]
            for buffer, old in zip(buffers, (part.keys, part.values), strict=True):
                buffer[row : row + count, :, start:length] = old.repeat_interleave(repeats, 0)
            part.reset()
            part._storage = None
            row += count
        self.lazy_initialization(*buffers)
        self._storage = buffers
        self.keys, self.values = (buffer[:, :, :length] for buffer in buffers)


def _grown_buffer(old: Tensor, new: Tensor, start: int, end: int) -> Tensor:
    """Return a buffer with spare positions after `end`, in which the first `start` positions are those of `old`."""
    buffer = new.new_empty(new.shape[0], new.shape[1], end + _SPARE_POSITIONS, new.shape[3])
    if start:
        buffer[:, :, :start] = old
    return buffer


def preallocated_cache(config: Any) -> DynamicCache:
    """Return an empty cache for the model. Its plain layers are preallocated, others (sliding windows) are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_preallocated(cache: DynamicCache) -> bool:
    """Return whether all layers are preallocated ones, which `concatenate_caches` needs."""
    return bool(cache.layers) and all(type(layer) is PreallocatedLayer for layer in cache.layers)


def concatenate_caches(parts: Sequence[DynamicCache], config: Any, repeats: int, length: int) -> DynamicCache:
    """Return one cache with the sequences of all parts, each `repeats` times, padded on the left to `length`; empty the parts."""
    cache = preallocated_cache(config)
    for number, layer in enumerate(cache.layers):
        layer.fill_from([part.layers[number] for part in parts], repeats, length)
    return cache
