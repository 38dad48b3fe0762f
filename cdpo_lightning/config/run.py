"""The whole configuration of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from cdpo_lightning.config.checks import choice, require
from cdpo_lightning.config.data import ClosedFormConfig, FilesConfig, ModelConfig
from cdpo_lightning.config.training import (
    ConstraintConfig,
    EvaluationConfig,
    FitConfig,
    LoggerConfig,
    MethodConfig,
    PolicyConfig,
    ScorerConfig,
    TrainerConfig,
)
from cdpo_lightning.errors import ConfigError

STAGES = ("sft", "reward", "cost", "policy", "evaluate", "report")


@dataclass(frozen=True)
class RunConfig:
    """One run, whole. Nothing below this is a DictConfig and nothing is mutable."""

    name: str
    seed: int
    mode: str
    stages: list[str]
    resume: bool
    run_dir: str
    artifacts_dir: str
    model: ModelConfig
    dataset: ClosedFormConfig | FilesConfig
    sft: FitConfig
    reward: ScorerConfig
    cost: ScorerConfig
    policy: PolicyConfig
    constraint: ConstraintConfig
    method: MethodConfig
    evaluation: EvaluationConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    judged: tuple[str, ...] = ()  # mode=evaluate: the folders or hub names of `policy=FOLDER`

    def __post_init__(self) -> None:
        choice("mode", self.mode, ("run", "check", "evaluate"))
        self._require_judged()
        for stage in self.stages:
            choice("stages", stage, STAGES)
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")
        if self.constraint.kind == "dual":
            every, epochs = self.constraint.every_k_epochs, self.policy.epochs
            require(every <= epochs, "constraint.every_k_epochs", every, f"at most policy.epochs, {epochs}: one round")
        if not self.model.path and not self.alone:
            if not isinstance(self.dataset, ClosedFormConfig):
                raise ConfigError(
                    "model.path is empty: a model built here knows only the words of dataset=closed_form; name a model"
                )
            self.model.require_architecture()

    def _require_judged(self) -> None:
        """Raises:
        ConfigError: mode=evaluate without a policy to judge, or a folder to judge in another mode.
        """
        if bool(self.judged) != (self.mode == "evaluate"):
            if self.mode == "evaluate":
                raise ConfigError("mode=evaluate: expected policy=FOLDER with it, the model to judge")
            raise ConfigError(f"policy={'+'.join(self.judged)}: expected policy.KEY=VALUE; a folder is judged with mode=evaluate")

    @property
    def alone(self) -> bool:
        """Whether policies are judged on files without a model that they come from: with published score models only."""
        return bool(self.judged) and not self.model.path and not isinstance(self.dataset, ClosedFormConfig)

    @property
    def judges(self) -> tuple[str, ...]:
        """The names under which the folders to judge are reported."""
        return ("policy",) if len(self.judged) == 1 else tuple(f"policy_{i}" for i, _ in enumerate(self.judged, 1))

    @property
    def who(self) -> str:
        """The name under which the run's own policy is reported."""
        return {"dual": "cdpo", "fixed": "cdpo_fixed", "none": "dpo"}[self.constraint.kind]

    def identity(self) -> str:
        """Sixteen hex digits that name the run's result: every value but where it is written and how it is watched."""
        values = dataclasses.asdict(self)
        for key in ("resume", "run_dir", "artifacts_dir", "logger", "mode"):
            values.pop(key)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
