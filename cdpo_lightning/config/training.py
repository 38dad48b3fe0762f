"""The groups that say how: the supervised stages, the policy, the constraint, the trainer, the logger."""

from __future__ import annotations

from dataclasses import dataclass, field

from cdpo_lightning.config.checks import choice, require
from cdpo_lightning.config.methods import require_lambda


@dataclass(frozen=True)
class FitConfig:
    """One supervised stage: SFT, the reward model or the cost model."""

    epochs: int = 1
    batch_size: int = 64  # SFT: rows of one prompt; score models: pairs and single answers
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.05  # share of the steps

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.lr > 0, "lr", self.lr, "more than 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "[0, 1)")


@dataclass(frozen=True)
class ScorerConfig(FitConfig):
    """A score model: trained here, or `path`, a folder or hub name in the published Beaver layout or Hugging Face's."""

    path: str = ""
    revision: str | None = None  # of a hub name
    sign: int = 1  # -1: the score model of `path` is read with the other sign, as a safety score that serves as a cost
    template: str = ""  # empty: the policy's
    max_tokens: int = 512
    unit_sd: bool = True  # divide the scores by their sd over the training responses; zero stays where it is

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("template", self.template, ("", "plain", "chat", "beaver", "pair"))
        require(bool(self.path) or self.template != "pair", "template", self.template, "another one, or a score model in path")
        require(self.sign in (1, -1), "sign", self.sign, "1 or -1")
        require(bool(self.path) or self.sign == 1, "sign", self.sign, "1: a score model trained here has the right sign")
        require(self.max_tokens >= 2, "max_tokens", self.max_tokens, "at least 2")


@dataclass(frozen=True)
class PolicyConfig:
    """The DPO policy. `refresh`: new on-policy pairs per prompt and dual round; 0 is the paper."""

    beta: float = 0.5  # KL weight, reward units per nat
    labels: str = "soft"
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    refresh: int = 128
    refresh_window: int = 4  # rounds whose pairs stay in the data
    anchor: float = 0.0
    anchor_responses: int = 16  # reference responses per prompt, drawn once, if anchor > 0
    epochs: int = 20
    batch_size: int = 256
    pairs_per_row: int = 32  # pairs of one prompt read in one row, responses they share once; 1: a row a pair
    lr: float = 4e-3
    lr_final: float = 0.02  # the last epoch's learning rate as a share of the first's
    weight_decay: float = 0.0
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        require(self.beta > 0, "policy.beta", self.beta, "more than 0")
        choice("policy.labels", self.labels, ("bernoulli", "soft", "argmax"))
        choice("policy.loss", self.loss, ("sigmoid", "ipo", "hinge"))
        require(0 <= self.label_smoothing < 0.5, "policy.label_smoothing", self.label_smoothing, "[0, 0.5)")
        require(self.refresh >= 0, "policy.refresh", self.refresh, "0 (off) or more")
        require(self.refresh_window >= 1, "policy.refresh_window", self.refresh_window, "at least 1")
        require(self.anchor >= 0, "policy.anchor", self.anchor, "0 (off) or more")
        require(self.anchor_responses >= 2, "policy.anchor_responses", self.anchor_responses, "at least 2")
        require(self.epochs >= 1, "policy.epochs", self.epochs, "at least 1")
        require(self.batch_size >= 1, "policy.batch_size", self.batch_size, "at least 1")
        require(self.pairs_per_row >= 1, "policy.pairs_per_row", self.pairs_per_row, "at least 1")
        require(self.lr > 0, "policy.lr", self.lr, "more than 0")
        require(0 < self.lr_final <= 1, "policy.lr_final", self.lr_final, "(0, 1]")
        require(self.weight_decay >= 0, "policy.weight_decay", self.weight_decay, "0 or more")
        require(self.gradient_clip >= 0, "policy.gradient_clip", self.gradient_clip, "0 (off) or more")


@dataclass(frozen=True)
class ConstraintConfig:
    """E[c] <= c_limit. `kind`: dual (the loop), fixed (lambda stays at lambda_init), none (lambda = 0, plain DPO)."""

    kind: str = "dual"
    c_limit: float = -0.5  # cost units of the cost model in use
    update: str = "newton"
    update_options: dict[str, float] = field(default_factory=dict)  # settings of the update that are no keys of their own
    lambda_init: float | str = 0.0  # reward per cost; one_shot; or, in the closed-form world, exact
    lambda_lr: float = 0.5  # projected, log, pi
    lambda_max: float = 20.0
    proportional: float = 0.5  # pi: weight of the violation itself, in units of lambda_lr
    damping: float = 0.5  # newton: share of the full step
    max_step: float = 1.0  # newton: largest change of lambda in one round
    every_k_epochs: int = 1
    prompts: int = 0  # sampled per round; 0: all
    samples_per_prompt: int = 32
    one_shot_samples: int = 128

    def __post_init__(self) -> None:
        choice("constraint.kind", self.kind, ("dual", "fixed", "none"))
        choice("constraint.update", self.update, ("projected", "newton", "log", "pi"))
        require_lambda("constraint.lambda_init", self.lambda_init)
        require(self.lambda_max > 0, "constraint.lambda_max", self.lambda_max, "more than 0")
        require(self.lambda_lr > 0, "constraint.lambda_lr", self.lambda_lr, "more than 0")
        require(0 < self.damping <= 1, "constraint.damping", self.damping, "(0, 1]")
        require(self.max_step > 0, "constraint.max_step", self.max_step, "more than 0")
        require(self.every_k_epochs >= 1, "constraint.every_k_epochs", self.every_k_epochs, "at least 1")
        require(self.prompts >= 0, "constraint.prompts", self.prompts, "0 (all) or more")
        require(self.samples_per_prompt >= 2, "constraint.samples_per_prompt", self.samples_per_prompt, "at least 2")
        require(self.one_shot_samples >= 2, "constraint.one_shot_samples", self.one_shot_samples, "at least 2")
        require(self.proportional >= 0, "constraint.proportional", self.proportional, "0 or more")
        if self.kind == "dual" and not isinstance(self.lambda_init, str):
            lam, highest = self.lambda_init, self.lambda_max
            require(lam <= highest, "constraint.lambda_init", lam, f"at most constraint.lambda_max, {highest:g}")
            require(lam > 0 or self.update != "log", "constraint.lambda_init", lam, "more than 0 with update=log")


@dataclass(frozen=True)
class EvaluationConfig:
    """Every policy is judged on the same seeded prompts, temperature 1."""

    prompts: int = 0  # evenly spread over the file; 0: all
    samples_per_prompt: int = 32
    refusal_prompts: str = ""  # XSTest's; empty: over-refusal is not measured
    truthfulqa: str = ""  # its multiple choice; empty: not measured

    def __post_init__(self) -> None:
        require(self.prompts >= 0, "evaluation.prompts", self.prompts, "0 (all) or more")
        require(self.samples_per_prompt >= 1, "evaluation.samples_per_prompt", self.samples_per_prompt, "at least 1")


@dataclass(frozen=True)
class GenerationConfig:
    """Who draws the samples of dual rounds and evaluation. `engine`: torch, the policy where it lies; vllm, in its own process."""

    engine: str = "torch"
    gpu_memory: float = 0.4  # vllm: its share of the GPU's memory

    def __post_init__(self) -> None:
        choice("generation.engine", self.engine, ("torch", "vllm"))
        require(0 < self.gpu_memory < 1, "generation.gpu_memory", self.gpu_memory, "(0, 1)")


@dataclass(frozen=True)
class TrainerConfig:
    """What Lightning's Trainer is given. Among several ranks each takes its share of every batch; batch sizes are the run's."""

    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    strategy: str = "auto"  # auto: one process, or ddp; deepspeed_zero1, 2, 3 shard optimizer, gradients, parameters
    offload: bool = False  # DeepSpeed: optimizer state, with zero3 parameters too, in the memory of the host
    gather: str = "whole"  # ZeRO-3, while the policy samples: whole, once a dual round; layer: each when it is run, slower
    park_frozen: bool = False  # models that are trained no more in the memory of the host while they are not used
    accumulate_grad_batches: int = 1
    checkpoint_every_n_steps: int = 0  # within an epoch; 0: after every epoch only
    keep_checkpoints: int = 1  # the newest so many of a stage
    log_every_n_steps: int = 5  # a row of history.csv, and a point of the loggers, every so many steps
    inference_batch: int = 256  # rows in one forward pass without gradient
    sample_batch: int = 2048  # sequences sampled side by side
    num_threads: int = 0  # 0: torch decides

    def __post_init__(self) -> None:
        choice("trainer.accelerator", self.accelerator, ("cpu", "gpu", "auto"))
        choice("trainer.precision", self.precision, ("auto", "32-true", "bf16-mixed", "bf16-true"))
        choice("trainer.strategy", self.strategy, ("auto", "ddp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"))
        choice("trainer.gather", self.gather, ("whole", "layer"))
        require(
            self.zero == 3 or self.gather == "whole",
            "trainer.gather",
            self.gather,
            "whole unless trainer.strategy is deepspeed_zero3",
        )
        require(self.devices >= 1, "trainer.devices", self.devices, "at least 1")
        require(self.zero > 0 or not self.offload, "trainer.offload", self.offload, "false unless trainer.strategy is of DeepSpeed")
        require(self.num_nodes >= 1, "trainer.num_nodes", self.num_nodes, "at least 1")
        require(self.num_threads >= 0, "trainer.num_threads", self.num_threads, "0 (torch decides) or more")
        accumulate = self.accumulate_grad_batches
        require(accumulate >= 1, "trainer.accumulate_grad_batches", accumulate, "at least 1")
        every = self.checkpoint_every_n_steps
        require(every >= 0, "trainer.checkpoint_every_n_steps", every, "0 (after every epoch only) or more")
        require(self.keep_checkpoints >= 1, "trainer.keep_checkpoints", self.keep_checkpoints, "at least 1")
        require(self.log_every_n_steps >= 1, "trainer.log_every_n_steps", self.log_every_n_steps, "at least 1")
        require(self.inference_batch >= 1, "trainer.inference_batch", self.inference_batch, "at least 1")
        require(self.sample_batch >= 1, "trainer.sample_batch", self.sample_batch, "at least 1")

    @property
    def processes(self) -> int:
        """Ranks of the run."""
        return self.devices * self.num_nodes

    @property
    def zero(self) -> int:
        """The stage of DeepSpeed's ZeRO, 0 without DeepSpeed."""
        return int(self.strategy[-1]) if self.strategy.startswith("deepspeed") else 0


@dataclass(frozen=True)
class LoggerConfig:
    """A Lightning logger beside history.csv: none, csv, tensorboard or wandb (offline unless `offline: false`)."""

    kind: str = "none"
    project: str = "cdpo"
    group: str = ""
    name: str = ""  # wandb: of the run; empty: its overrides
    artifact: bool = False  # wandb: upload the exported policy too
    offline: bool = True

    def __post_init__(self) -> None:
        choice("logger.kind", self.kind, ("none", "csv", "tensorboard", "wandb"))
