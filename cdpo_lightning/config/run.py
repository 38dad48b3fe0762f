"""The whole configuration of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace

from cdpo_lightning.config.checks import choice, require
from cdpo_lightning.config.data import ClosedFormConfig, FilesConfig, ModelConfig
from cdpo_lightning.config.methods import BY_KIND, METHODS, MethodConfig, MethodSpec, PPOConfig, PrimalDualConfig
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
from cdpo_lightning.errors import ConfigError

# Of the trainer, what may be another when a run is resumed: how many ranks share the work, and where things are kept.
_HOW = ("devices", "num_nodes", "offload", "gather", "park_frozen", "checkpoint_every_n_steps", "keep_checkpoints")
STAGES = ("sft", "reward", "cost", "policy", "evaluate", "report")


@dataclass(frozen=True)
class ResolvedMethod:
    """How one method is trained: its recipe, and the groups with the recipe's values in place of the run's."""

    who: str
    spec: MethodSpec
    human: bool  # its labels are those of the data set
    policy: PolicyConfig
    constraint: ConstraintConfig
    primal_dual: PrimalDualConfig
    ppo: PPOConfig


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
    primal_dual: PrimalDualConfig
    ppo: PPOConfig
    evaluation: EvaluationConfig
    generation: GenerationConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    external_policies: tuple[str, ...] = ()  # mode=evaluate: the folders or hub names of `policy=FOLDER`

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
        self._require_method()
        self._require_model_fits_trainer()

    def _require_model_fits_trainer(self) -> None:
        """Raises:
        ConfigError: weights in 4 bits are to be sharded, or trained; or layers compiled whose parameters come and go; or attention
            that needs a GPU without one.
        """
        attention = self.model.attention
        on_cpu = attention == "flex_attention" and self.trainer.accelerator == "cpu"
        require(not on_cpu, "model.attention", attention, "sdpa or eager with trainer.accelerator=cpu: it has no gradient there")
        value, compiled = self.model.quantize, self.model.compile
        require(
            not compiled or self.trainer.zero != 3, "model.compile", compiled, "false with ZeRO-3, which gathers layers by hooks"
        )
        require(not value or self.trainer.zero != 3, "model.quantize", value, "empty with ZeRO-3, which would shard the weights")
        engine, gather = self.generation.engine, self.trainer.gather
        require(engine == "torch" or gather == "whole", "generation.engine", engine, "torch with trainer.gather=layer")
        ppo = [who for who in self.trained if self.plan(who).spec.trainer == "ppo"]
        require(not value or not ppo, "model.quantize", value, f"empty with {', '.join(ppo)}, which trains all weights")

    def _require_method(self) -> None:
        """Raises:
        ConfigError: the method and `constraint.kind` do not go together, or a method needs a world that can be enumerated.
        """
        if self.who not in METHODS:
            kind, name = self.constraint.kind, self.method.name
            raise ConfigError(
                f"constraint.kind={kind}: method={name} has {METHODS[name].kind}; choose constraint={METHODS[name].kind}"
            )
        for key, value in (
            ("constraint.lambda_init", self.constraint.lambda_init),
            ("method.fixed_lambda", self.method.fixed_lambda),
        ):
            self._require_world(value == "exact", key, "exact")
        for plan in map(self.plan, self.trained):
            complete = plan.spec.trainer == "primal_dual" and plan.primal_dual.pairs == "complete"
            self._require_world(complete, "primal_dual.pairs", "complete")

    def _require_world(self, needed: bool, key: str, value: str) -> None:
        enumerated = isinstance(self.dataset, ClosedFormConfig)
        require(enumerated or not needed, key, value, "another value: only responses of dataset=closed_form can be enumerated")

    def _require_judged(self) -> None:
        """Raises:
        ConfigError: mode=evaluate without a policy to judge, or a folder to judge in another mode.
        """
        if bool(self.external_policies) != (self.mode == "evaluate"):
            if self.mode == "evaluate":
                raise ConfigError("mode=evaluate: expected policy=FOLDER with it, the model to judge")
            raise ConfigError(
                f"policy={'+'.join(self.external_policies)}: expected policy.KEY=VALUE; a folder is judged with mode=evaluate"
            )

    @property
    def alone(self) -> bool:
        """Whether policies are judged on files without a model that they come from: with published score models only."""
        return bool(self.external_policies) and not self.model.path and not isinstance(self.dataset, ClosedFormConfig)

    @property
    def external_names(self) -> tuple[str, ...]:
        """The names under which the folders to judge are reported."""
        return (
            ("policy",)
            if len(self.external_policies) == 1
            else tuple(f"policy_{i}" for i, _ in enumerate(self.external_policies, 1))
        )

    @property
    def who(self) -> str:
        """The name under which the run's own policy is reported."""
        name, kind = self.method.name, self.constraint.kind
        if METHODS[name].trainer == "none" or METHODS[name].kind == kind:
            return name
        return BY_KIND.get((name, kind), "")

    @property
    def trained(self) -> list[str]:
        """Whom the policy stage trains, the run's own last."""
        return list(dict.fromkeys([*(who for who in self.method.baselines if who != self.who), self.who]))

    def plan(self, who: str) -> ResolvedMethod:
        """How `who` is trained: the recipe's values in place of the run's."""
        spec = METHODS[who]
        human = spec.human_labels and self.method.preferences == "human"
        policy = {"epochs": self._epochs_of(who), **spec.policy}
        if human:
            policy["refresh"] = 0  # nobody labels the policy's own samples
        constraint = {"kind": spec.kind, **spec.constraint, **self._lambda_of(who)}
        return ResolvedMethod(
            who=who,
            spec=spec,
            human=human,
            policy=replace(self.policy, **policy),  # type: ignore[arg-type]
            constraint=replace(self.constraint, **constraint),  # type: ignore[arg-type]
            primal_dual=replace(self.primal_dual, **spec.primal_dual),  # type: ignore[arg-type]
            ppo=self.ppo,
        )

    def _epochs_of(self, who: str) -> int:
        """Epochs over pairs: a method beside the run's own may have fewer."""
        bound = self.method.baseline_epochs if who != self.who else 0
        return min(self.policy.epochs, bound or self.policy.epochs)

    def _lambda_of(self, who: str) -> dict[str, object]:
        """Lambda's start where it is not `constraint`'s: PPO-Lag's own, `cost_only`'s, and the constant of a method beside."""
        if METHODS[who].trainer == "ppo":
            return {"lambda_init": self.ppo.lambda_init, "lambda_lr": self.ppo.lambda_lr}
        if who == "cost_only":
            return {"lambda_init": self.method.cost_only_lambda}
        if METHODS[who].kind != "fixed" or who == self.who:
            return {}
        return {"lambda_init": self.method.fixed_lambda}

    def identity(self) -> str:
        """Sixteen hex digits that name the run's result: every value but where it is written, how it is watched
        and how many ranks share the work.
        """
        values = dataclasses.asdict(self)
        for key in ("resume", "run_dir", "artifacts_dir", "logger", "mode", "generation"):
            values.pop(key)
        for key in ("compile", "quantize"):  # a run from before there were these goes on
            if not values["model"][key]:
                values["model"].pop(key)
        for key in _HOW:
            values["trainer"].pop(key)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
