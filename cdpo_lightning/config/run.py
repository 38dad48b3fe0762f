"""The whole configuration of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cdpo_lightning.config import training
from cdpo_lightning.config.data import ClosedFormConfig, FilesConfig, ModelConfig
from cdpo_lightning.config.fields import OneOf, require, settings
from cdpo_lightning.config.methods import BY_KIND, METHODS, MethodConfig, MethodSpec, PPOConfig, PrimalDualConfig
from cdpo_lightning.errors import ConfigError

Stage = Annotated[str, OneOf(("sft", "reward", "cost", "policy", "evaluate", "report"))]
# Old key -> new key, both in full. An old one is refused with the new one, on the command line and in a file.
RENAMED: Mapping[str, str] = MappingProxyType({"primal_dual.online": "primal_dual.refresh"})
# What a resumed run may change in the group `trainer`: how many ranks share the work, and where tensors and checkpoints are kept.
_NOT_IN_IDENTITY = ("devices", "num_nodes", "offload", "gather", "park_frozen", "checkpoint_every_n_steps", "keep_checkpoints")


@dataclass(frozen=True)
class ResolvedMethod:
    """How one method is trained: its specification, and the run's groups with the values of the specification in them."""

    who: str
    spec: MethodSpec
    human: bool  # its labels are those of the data set
    policy: training.PolicyConfig
    constraint: training.ConstraintConfig
    primal_dual: PrimalDualConfig
    ppo: PPOConfig


@settings
class RunConfig:
    """One run, whole: the one list of the groups and of the keys outside them. Nothing in it is a DictConfig."""

    name: str
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    mode: Literal["run", "check", "evaluate"]
    stages: list[Stage]
    resume: bool
    run_dir: str
    artifacts_dir: str
    model: ModelConfig
    dataset: Annotated[ClosedFormConfig | FilesConfig, Field(discriminator="kind")]
    sft: training.FitConfig
    reward: training.ScorerConfig
    cost: training.ScorerConfig
    policy: training.PolicyConfig
    constraint: training.ConstraintConfig
    method: MethodConfig
    primal_dual: PrimalDualConfig
    ppo: PPOConfig
    evaluation: training.EvaluationConfig
    generation: training.GenerationConfig
    trainer: training.TrainerConfig
    logger: training.LoggerConfig
    external_policies: tuple[str, ...] = ()  # mode=evaluate: the folders or hub names of `policy=FOLDER`

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        self._check_external_policies()
        if self.constraint.kind == "dual":
            every, epochs = self.constraint.every_k_epochs, self.policy.epochs
            require(every <= epochs, "constraint.every_k_epochs", every, f"at most policy.epochs, {epochs}: one round")
        if not self.model.path and not self.external_only:
            if not self.enumerable:
                raise ConfigError(
                    "model.path is empty: a model built here knows only the words of dataset=closed_form; name a model"
                )
            self.model.require_architecture()
        self._check_method()
        self._check_model_fits_trainer()
        return self

    def _check_external_policies(self) -> None:
        """Raises:
        ConfigError: mode=evaluate without a policy to evaluate, or a folder of one in another mode.
        """
        if self.mode == "evaluate" and not self.external_policies:
            raise ConfigError("mode=evaluate: expected policy=FOLDER with it, the model to evaluate")
        if self.mode != "evaluate" and self.external_policies:
            given = "+".join(self.external_policies)
            raise ConfigError(f"policy={given}: expected policy.KEY=VALUE; the policy in a folder is evaluated with mode=evaluate")

    def _check_method(self) -> None:
        """Raises:
        ConfigError: the method and `constraint.kind` do not go together, or a method needs a world that can be enumerated.
        """
        if self.who not in METHODS:
            kind, name = self.constraint.kind, self.method.name
            raise ConfigError(
                f"constraint.kind={kind}: method={name} has {METHODS[name].kind}; choose constraint={METHODS[name].kind}"
            )
        methods = [self.resolve_method(who) for who in self.trained]
        complete = any(one.spec.trainer == "primal_dual" and one.primal_dual.pairs == "complete" for one in methods)
        for needed, key, value in (
            (self.constraint.lambda_init == "exact", "constraint.lambda_init", "exact"),
            (self.method.fixed_lambda == "exact", "method.fixed_lambda", "exact"),
            (complete, "primal_dual.pairs", "complete"),
        ):
            expected = "another value: only responses of dataset=closed_form can be enumerated"
            require(self.enumerable or not needed, key, value, expected)

    def _check_model_fits_trainer(self) -> None:
        """Raises:
        ConfigError: 4-bit weights would be sharded or trained, compiled layers sharded, or the attention needs a GPU.
        """
        attention = self.model.attention
        on_cpu = attention == "flex_attention" and self.trainer.accelerator == "cpu"
        require(not on_cpu, "model.attention", attention, "sdpa or eager with trainer.accelerator=cpu: it has no gradient there")
        value, compiled, sharded = self.model.quantize, self.model.compile, self.trainer.zero == 3
        require(not compiled or not sharded, "model.compile", compiled, "false with ZeRO-3, which gathers layers by hooks")
        require(not value or not sharded, "model.quantize", value, "empty with ZeRO-3, which would shard the weights")
        engine, gather = self.generation.engine, self.trainer.gather
        require(engine == "torch" or gather == "whole", "generation.engine", engine, "torch with trainer.gather=layer")
        ppo = [who for who in self.trained if METHODS[who].trainer == "ppo"]
        require(not value or not ppo, "model.quantize", value, f"empty with {', '.join(ppo)}, which trains all weights")

    @property
    def enumerable(self) -> bool:
        """Whether all responses can be listed, so that optima are exact: the closed-form world."""
        return isinstance(self.dataset, ClosedFormConfig)

    @property
    def external_only(self) -> bool:
        """Whether external policies are evaluated on files without a model of the run's own: with published score models only."""
        return bool(self.external_policies) and not self.model.path and not self.enumerable

    @property
    def external_names(self) -> tuple[str, ...]:
        """The names under which the external policies are reported, in their order."""
        count = len(self.external_policies)
        return ("policy",) if count == 1 else tuple(f"policy_{i}" for i in range(1, count + 1))

    @property
    def who(self) -> str:
        """The name under which the run's own policy is reported."""
        name, kind = self.method.name, self.constraint.kind
        if METHODS[name].trainer == "none" or METHODS[name].kind == kind:
            return name
        return BY_KIND.get((name, kind), "")

    @property
    def trained(self) -> list[str]:
        """The methods that the policy stage trains, the run's own last."""
        return list(dict.fromkeys([*(who for who in self.method.baselines if who != self.who), self.who]))

    def resolve_method(self, who: str) -> ResolvedMethod:
        """Return how the method `who` is trained: the values of its specification in place of the run's."""
        spec = METHODS[who]
        human = spec.human_labels and self.method.preferences == "human"
        policy = {"epochs": self._epochs_of(who), **spec.policy}
        if human:
            policy["refresh"] = 0  # nobody labels the policy's own samples
        constraint = {"kind": spec.kind, **spec.constraint, **self._lambda_of(who)}
        if constraint.get("update", self.constraint.update) != self.constraint.update:
            constraint["update_options"] = {}  # the run's are of its own update
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
        """Return the epochs over pairs: a baseline may have fewer than the run's own method."""
        bound = self.method.baseline_epochs if who != self.who else 0
        return min(self.policy.epochs, bound or self.policy.epochs)

    def _lambda_of(self, who: str) -> dict[str, object]:
        """Return what replaces `constraint`'s start of lambda: PPO-Lag's own and its update, or a constant."""
        if METHODS[who].trainer == "ppo":
            own = self.ppo
            return {"update": own.update, "lambda_init": own.lambda_init, "lambda_lr": own.lambda_lr}
        if who == "cost_only":
            return {"lambda_init": self.method.cost_only_lambda}
        if METHODS[who].kind != "fixed" or who == self.who:
            return {}
        return {"lambda_init": self.method.fixed_lambda}

    def identity(self) -> str:
        """Return sixteen hex digits that name the run's result: a hash of every value but those that do not change it
        (where files are written, what is logged, how many ranks share the work).
        """
        values = dataclasses.asdict(self)
        for key in ("resume", "run_dir", "artifacts_dir", "logger", "mode", "generation"):
            values.pop(key)
        for key in _NOT_IN_IDENTITY:
            values["trainer"].pop(key)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
