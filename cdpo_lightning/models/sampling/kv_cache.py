"""A key-value cache with room to grow: a new token is written into place, where the library's own copies all that came before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # positions that a buffer has left when it is made


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, T, D] as views of larger buffers; whatever replaces the views is copied at the next token."""

    keys: Tensor
    values: Tensor
    _buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones [B, heads, t, D] last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            self._buffers = (_widened(self.keys, key_states, start, end), _widened(self.values, value_states, start, end))
        keys, values = self._buffers
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """These sequences only."""
        super().batch_select_indices(indices)
        self._buffers = None

    def take_over(self, parts: Sequence[RoomyLayer], repeats: int, length: int) -> None:
        """Becomes the sequences of all `parts`, each `repeats` times, its positions the last of `length`; the parts are emptied."""
        rows = repeats * sum(part.keys.shape[0] for part in parts)
        # Zeros: what lies before a short sequence is masked, and must be finite for that.
        keys, values = (old.new_zeros(rows, old.shape[1], length + _ROOM, old.shape[3]) for old in (parts[0].keys, parts[0].values))
        buffers = keys, values
        row = 0
        for part in parts:
            count, start = repeats * part.keys.shape[0], length - part.keys.shape[2]
            for buffer, old in zip(buffers, (part.keys, part.values), strict=True):
                buffer[row : row + count, :, start:length] = old.repeat_interleave(repeats, 0)
            part.reset()
            part._buffers = None
            row += count
        self.lazy_initialization(*buffers)
        self._buffers = buffers
        self.keys, self.values = (buffer[:, :, :length] for buffer in buffers)


def _widened(old: Tensor, new: Tensor, start: int, end: int) -> Tensor:
    """A buffer with room beyond `end` that begins with the `start` positions of `old`."""
    buffer = new.new_empty(new.shape[0], new.shape[1], end + _ROOM, new.shape[3])
    if start:
        buffer[:, :, :start] = old
    return buffer


def growing_cache(config: Any) -> DynamicCache:
    """The model's cache, its plain layers with room to grow; layers of another kind (sliding windows) stay the library's."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def grows_in_place(cache: DynamicCache) -> bool:
    """Whether all layers are plain ones, which `joined` can put together."""
    return bool(cache.layers) and all(type(layer) is RoomyLayer for layer in cache.layers)


def joined(parts: Sequence[DynamicCache], config: Any, repeats: int, length: int) -> DynamicCache:
    """One cache of the sequences of all parts, each `repeats` times, filled up on the left to `length`; the parts are emptied."""
    cache = growing_cache(config)
    for number, layer in enumerate(cache.layers):
        layer.take_over([part.layers[number] for part in parts], repeats, length)
    return cache
