"""The groups of the supervised stages, the policy, the constraint, the evaluation, the sampling, the trainer and the logger."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cdpo_lightning.config.fields import (
    AtLeastTwo,
    CountOrAll,
    CountOrOff,
    OneOf,
    PositiveShare,
    Share,
    WeightOrOff,
    require,
    settings,
)
from cdpo_lightning.config.messages import Expected
from cdpo_lightning.config.methods import LambdaSource


@settings
class FitConfig:
    """One supervised stage: SFT, the reward model or the cost model."""

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 64  # SFT: rows of one prompt; score models: pairs and single answers
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    warmup: Share = 0.05  # share of the steps


@settings
class ScorerConfig(FitConfig):
    """A score model: trained here, or `path`, a folder or hub name in the published Beaver layout or Hugging Face's."""

    path: str = ""
    revision: str | None = None  # of a hub name
    sign: Annotated[int, OneOf((1, -1))] = 1  # -1: multiply the scores of `path` by -1, to use a safety score as a cost
    template: Literal["", "plain", "chat", "beaver", "pair"] = ""  # empty: the policy's
    max_tokens: AtLeastTwo = 512
    unit_sd: bool = True  # divide the scores by their sd over the training responses; zero is not moved

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        require(bool(self.path) or self.template != "pair", "template", self.template, "another one, or a score model in path")
        require(bool(self.path) or self.sign == 1, "sign", self.sign, "1: a score model trained here has the right sign")
        return self


@settings
class PolicyConfig:
    """The DPO policy. `refresh`: new on-policy pairs per prompt and dual round; 0 is the paper."""

    beta: PositiveFloat = 0.5  # KL weight, reward units per nat
    labels: Literal["bernoulli", "soft", "argmax"] = "soft"
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    refresh: CountOrOff = 128
    refresh_window: PositiveInt = 4  # rounds whose pairs stay in the data
    anchor: WeightOrOff = 0.0
    anchor_responses: AtLeastTwo = 16  # reference responses per prompt, drawn once, if anchor > 0
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 256
    pairs_per_row: PositiveInt = 32  # pairs of one prompt read in one row, responses they share once; 1: a row per pair
    lr: PositiveFloat = 4e-3
    lr_final: PositiveShare = 0.02  # the last epoch's learning rate as a share of the first's
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: WeightOrOff = 1.0


@settings
class ConstraintConfig:
    """E[c] <= c_limit. `kind`: dual (the loop), fixed (lambda stays at lambda_init), none (lambda = 0, plain DPO)."""

    kind: Literal["dual", "fixed", "none"] = "dual"
    c_limit: float = -0.5  # cost units of the cost model in use
    update: str = "newton"  # a dual update; its registry refuses an unknown one
    update_options: dict[str, float] = field(default_factory=dict)  # settings that only this update has
    lambda_init: NonNegativeFloat | LambdaSource = 0.0  # reward per cost; one_shot; or, in the closed-form world, exact
    lambda_lr: PositiveFloat = 0.5  # projected, log, pi
    lambda_max: PositiveFloat = 20.0
    proportional: NonNegativeFloat = 0.5  # pi: weight of the violation itself, in units of lambda_lr
    damping: PositiveShare = 0.5  # newton: share of the full step
    max_step: PositiveFloat = 1.0  # newton: largest change of lambda in one round
    every_k_epochs: PositiveInt = 1
    prompts: CountOrAll = 0  # sampled per round
    samples_per_prompt: AtLeastTwo = 32
    one_shot_samples: AtLeastTwo = 128

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if self.kind == "dual" and not isinstance(self.lambda_init, str):
            lam, highest = self.lambda_init, self.lambda_max
            require(lam <= highest, "lambda_init", lam, f"at most constraint.lambda_max, {highest:g}")
            require(lam > 0 or self.update != "log", "lambda_init", lam, "more than 0 with update=log")
        return self


@settings
class EvaluationConfig:
    """Every policy is evaluated on the same seeded prompts, at temperature 1."""

    prompts: CountOrAll = 0  # evenly spread over the file
    samples_per_prompt: PositiveInt = 32
    refusal_prompts: str = ""  # XSTest's; empty: over-refusal is not measured
    truthfulqa: str = ""  # its multiple choice; empty: not measured


@settings
class GenerationConfig:
    """The sampling engine of dual rounds and evaluation. `engine`: torch, in the policy's own process; vllm, in another one."""

    engine: Literal["torch", "vllm"] = "torch"
    gpu_memory: Annotated[float, Field(gt=0, lt=1)] = 0.4  # vllm: its share of the GPU's memory


@settings
class TrainerConfig:
    """The settings of Lightning's Trainer. Batch sizes are those of the whole run: each rank takes its share of every batch."""

    accelerator: Literal["cpu", "gpu", "auto"] = "cpu"
    devices: PositiveInt = 1
    num_nodes: PositiveInt = 1
    precision: Annotated[str, OneOf(("auto", "32-true", "bf16-mixed", "bf16-true"))] = "32-true"
    # auto: one process, or ddp; deepspeed_zero1, 2, 3 shard optimizer, gradients, parameters
    strategy: Literal["auto", "ddp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"] = "auto"
    offload: bool = False  # DeepSpeed: optimizer state, with zero3 parameters too, in the memory of the host
    gather: Literal["whole", "layer"] = "whole"  # ZeRO-3, in a dual round: gather all weights once, or one layer at a time (slower)
    park_frozen: bool = False  # keep models that are no longer trained in the memory of the host while they are not used
    accumulate_grad_batches: PositiveInt = 1
    # Steps between checkpoints within an epoch.
    checkpoint_every_n_steps: Annotated[NonNegativeInt, Expected("0 (after every epoch only) or more")] = 0
    keep_checkpoints: PositiveInt = 1  # of each stage, the newest
    log_every_n_steps: PositiveInt = 5  # steps per row of history.csv and per point of the loggers
    inference_batch: PositiveInt = 256  # rows in one forward pass without gradient
    sample_batch: PositiveInt = 2048  # sequences sampled in one batch
    num_threads: Annotated[NonNegativeInt, Expected("0 (torch decides) or more")] = 0

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        whole = self.zero == 3 or self.gather == "whole"
        require(whole, "gather", self.gather, "whole unless trainer.strategy is deepspeed_zero3")
        require(self.zero > 0 or not self.offload, "offload", self.offload, "false unless trainer.strategy is of DeepSpeed")
        return self

    @property
    def processes(self) -> int:
        """Number of ranks of the run."""
        return self.devices * self.num_nodes

    @property
    def zero(self) -> int:
        """The stage of DeepSpeed's ZeRO, 0 without DeepSpeed."""
        return int(self.strategy[-1]) if self.strategy.startswith("deepspeed") else 0


@settings
class LoggerConfig:
    """A Lightning logger in addition to history.csv: none, csv, tensorboard or wandb (offline unless `offline: false`)."""

    kind: Literal["none", "csv", "tensorboard", "wandb"] = "none"
    project: str = "cdpo"
    group: str = ""
    name: str = ""  # wandb: of the run; empty: its overrides
    artifact: bool = False  # wandb: upload the exported policy too
    offline: bool = True
