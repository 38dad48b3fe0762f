"""The configuration of a run, and how a method changes it."""

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
# Old key -> new key. An old key is refused with a message that names the new one.
RENAMED: Mapping[str, str] = MappingProxyType({"primal_dual.online": "primal_dual.refresh"})
# Keys of `trainer` that a resumed run may change: the number of ranks, and where tensors and checkpoints are kept.
_NOT_IN_IDENTITY = ("devices", "num_nodes", "offload", "gather", "park_frozen", "checkpoint_every_n_steps", "keep_checkpoints")


@dataclass(frozen=True)
class ResolvedMethod:
    """A method with the settings that it is trained with: the run's groups, changed by the method's specification."""

    who: str
    spec: MethodSpec
    human: bool  # its labels are those of annotators, from the data set
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
        """Check that mode=evaluate has a policy to evaluate, and that no other mode has one.

        Raises:
            ConfigError: it is not so.
        """
        if self.mode == "evaluate" and not self.external_policies:
            raise ConfigError("mode=evaluate: expected policy=FOLDER with it, the model to evaluate")
        if self.mode != "evaluate" and self.external_policies:
            given = "+".join(self.external_policies)
            raise ConfigError(f"policy={given}: expected policy.KEY=VALUE; the policy in a folder is evaluated with mode=evaluate")

    def _check_method(self) -> None:
        """Check that the method agrees with `constraint.kind`, and that exact values are available if a method needs them.

        Raises:
            ConfigError: the method does not agree with it, or exact values are not available.
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
        """Check that the settings of the model are compatible with the trainer and the methods.

        Raises:
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
        """Whether all responses can be enumerated, so that exact optima are known: only in the closed-form world."""
        return isinstance(self.dataset, ClosedFormConfig)

    @property
    def external_only(self) -> bool:
        """Whether the run has no model of its own and only evaluates external policies, with published score models."""
        return bool(self.external_policies) and not self.model.path and not self.enumerable

    @property
    def external_names(self) -> tuple[str, ...]:
        """The names of the external policies in reports, in their order."""
        count = len(self.external_policies)
        return ("policy",) if count == 1 else tuple(f"policy_{i}" for i in range(1, count + 1))

    @property
    def who(self) -> str:
        """The name of the run's own policy in reports; empty if the method cannot have this `constraint.kind`."""
        name, kind = self.method.name, self.constraint.kind
        if METHODS[name].trainer == "none" or METHODS[name].kind == kind:
            return name
        return BY_KIND.get((name, kind), "")

    @property
    def trained(self) -> list[str]:
        """The methods that the policy stage trains, the run's own last."""
        return list(dict.fromkeys([*(who for who in self.method.baselines if who != self.who), self.who]))

    def resolve_method(self, who: str) -> ResolvedMethod:
        """Return the method `who` with its settings: those of the run, replaced where its specification sets others."""
        spec = METHODS[who]
        human = spec.human_labels and self.method.preferences == "human"
        policy = {"epochs": self._epochs_of(who), **spec.policy}
        if human:
            policy["refresh"] = 0  # there are no human labels of the policy's own samples
        constraint = {"kind": spec.kind, **spec.constraint, **self._lambda_of(who)}
        if constraint.get("update", self.constraint.update) != self.constraint.update:
            constraint["update_options"] = {}  # those of the run belong to the run's own update
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
        """Return the number of epochs over pairs, which `method.baseline_epochs` limits for a baseline."""
        bound = self.method.baseline_epochs if who != self.who else 0
        return min(self.policy.epochs, bound or self.policy.epochs)

    def _lambda_of(self, who: str) -> dict[str, object]:
        """Return the method's own values for the keys of `constraint` on lambda: those of `ppo`, or a constant `lambda_init`."""
        if METHODS[who].trainer == "ppo":
            own = self.ppo
            return {"update": own.update, "lambda_init": own.lambda_init, "lambda_lr": own.lambda_lr}
        if who == "cost_only":
            return {"lambda_init": self.method.cost_only_lambda}
        if METHODS[who].kind != "fixed" or who == self.who:
            return {}
        return {"lambda_init": self.method.fixed_lambda}

    def identity(self) -> str:
        """Return a hash, sixteen hex digits, of all values that the run's result depends on.

        Left out are those that say where files are written, what is logged and how many ranks share the work.
        """
        values = dataclasses.asdict(self)
        for key in ("resume", "run_dir", "artifacts_dir", "logger", "mode", "generation"):
            values.pop(key)
        for key in _NOT_IN_IDENTITY:
            values["trainer"].pop(key)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
