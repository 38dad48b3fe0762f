"""The configuration: frozen dataclasses, one per group, and `parse`, the only door.

Units and signs stand beside each field. Cost is positive when harmful; lambda is in reward units per cost unit.
"""

from cdpo_lightning.config.data import ClosedFormConfig, FilesConfig, ModelConfig
from cdpo_lightning.config.methods import METHODS, MethodConfig, PPOConfig, PrimalDualConfig
from cdpo_lightning.config.parse import parse, plain, to_yaml
from cdpo_lightning.config.run import ResolvedMethod, RunConfig
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
    "parse",
    "plain",
    "to_yaml",
]
