"""What a sweep maximises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdpo_lightning.config import RunConfig


def objective(config: RunConfig, metrics: Mapping[str, Any] | None) -> float | None:
    """The run's E[reward] if its E[cost] meets the limit, else minus infinity; None if nothing was evaluated."""
    reward, cost = ((metrics or {}).get(f"eval/{config.who}/{name}_mean") for name in ("reward", "cost"))
    if not isinstance(reward, float) or not isinstance(cost, float):
        return None
    return reward if cost <= config.constraint.c_limit else -float("inf")
