"""The configuration: frozen pydantic dataclasses, one for each group, and `parse`, which creates them.

The comment after a field gives its unit and sign. Cost is positive when harmful; lambda is in reward units per cost unit.
"""

from cdpo_lightning.config.data import ClosedFormConfig, FilesConfig, ModelConfig
from cdpo_lightning.config.methods import METHODS, MethodConfig, PPOConfig, PrimalDualConfig
from cdpo_lightning.config.parse import json_schema, parse, plain, to_yaml
from cdpo_lightning.config.run import RENAMED, ResolvedMethod, RunConfig
from cdpo_lightning.config.training import (
    ConstraintConfig,
    EvaluationConfig,
    FitConfig,
    GenerationConfig,
    LoggerConfig,
    PolicyConfig,
    ScorerConfig,
    TrainerConfig,
)

__all__ = [
    "METHODS",
    "RENAMED",
    "ClosedFormConfig",
    "ConstraintConfig",
    "EvaluationConfig",
    "FilesConfig",
    "FitConfig",
    "GenerationConfig",
    "LoggerConfig",
    "MethodConfig",
    "ModelConfig",
    "PPOConfig",
    "PolicyConfig",
    "PrimalDualConfig",
    "ResolvedMethod",
    "RunConfig",
    "ScorerConfig",
    "TrainerConfig",
    "json_schema",
    "parse",
    "plain",
    "to_yaml",
]
