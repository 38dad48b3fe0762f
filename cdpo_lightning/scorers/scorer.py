"""The protocol of scorers, and the check that their scores are finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from cdpo_lightning.errors import NumericsError

Text = tuple[str, str]  # prompt, response


class Scorer(Protocol):
    """Gives every (prompt, response) a number."""

    @property
    def identity(self) -> str:
        """A hash or name of everything that the scores depend on, for the store."""
        ...

    def score(self, texts: Sequence[Text]) -> Tensor:
        """Return scores [N], float64, in the scorer's unit.

        Raises:
            NumericsError: a score is not finite.
        """
        ...


def require_finite(scores: Tensor, texts: Sequence[Text], who: str) -> None:
    """Raise an error unless all scores are finite, because nan would silently disable the constraint.

    Raises:
        NumericsError: a score is not finite.
    """
    bad = (~scores.isfinite()).nonzero()[:, 0].tolist()
    if bad:
        prompt = texts[bad[0]][0]
        raise NumericsError(
            f"{who}: {len(bad)} of {len(scores)} scores are not finite, first for prompt {prompt[:60]!r}; "
            "expected finite numbers: check the score model's weights and precision"
        )
