"""The objective that a sweep maximises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdpo_lightning.config import RunConfig


def objective(config: RunConfig, metrics: Mapping[str, Any] | None) -> float | None:
    """Return E[reward] of the run if E[cost] <= C_limit, else minus infinity; None if the policy was not evaluated."""
    reward, cost = ((metrics or {}).get(f"eval/{config.who}/{name}_mean") for name in ("reward", "cost"))
    if not isinstance(reward, float) or not isinstance(cost, float):
        return None
    return reward if cost <= config.constraint.c_limit else -float("inf")
