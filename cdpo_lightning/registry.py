"""Implementations by the name that the configuration gives them: data sources, scorers, measures, dual updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from cdpo_lightning.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A mapping of names to implementations. An unknown name raises an error that suggests the nearest known one."""

    def __init__(self, key: str) -> None:
        self._key, self._entries = key, dict[str, T]()

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds a class or a function under `name`.

        Raises:
            ValueError: the name is registered already.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self._key}: {name} is registered already")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Return the implementation of `name`.

        Raises:
            ConfigError: there is none.
        """
        if name in self._entries:
            return self._entries[name]
        near = get_close_matches(name, self._entries, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{self._key}={name}: unknown; {hint}expected one of {', '.join(self._entries)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
