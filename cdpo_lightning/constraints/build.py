"""Builds the constraints of a run from its configuration."""

from __future__ import annotations

from cdpo_lightning.config import ConstraintConfig
from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean


def make_constraints(config: ConstraintConfig) -> tuple[Constraint, ...]:
    """Return the constraints of the configuration, so far always one: E[cost] <= constraint.c_limit, over all prompts."""
    return (Constraint(name="cost", score="cost", measure=Mean(), limit=config.c_limit),)
