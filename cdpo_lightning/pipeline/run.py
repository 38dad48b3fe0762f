"""A run from its configuration to its report: the stages in order; the store spares SFT, score models and constants."""

from __future__ import annotations

import math
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from cdpo_lightning import ranks, report
from cdpo_lightning.config import RunConfig
from cdpo_lightning.console import Screen, quiet_libraries
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.models.lm.causal_lm import resolve_precision
from cdpo_lightning.models.sampling import vllm_generation
from cdpo_lightning.pipeline.evaluate.export import export_policy, export_scorer
from cdpo_lightning.pipeline.evaluate.external_policies import alone, external_policies
from cdpo_lightning.pipeline.evaluate.policies import evaluate_all, evaluate_by_samples
from cdpo_lightning.pipeline.methods.registry import train_policy
from cdpo_lightning.pipeline.preflight.checks import preflight
from cdpo_lightning.pipeline.prepare import Prepared, build_evaluation, prepare
from cdpo_lightning.store.files import write_json
from cdpo_lightning.store.run_folder import find_run, git_commit
from cdpo_lightning.training.callbacks.wandb_run import publish, watched
from cdpo_lightning.training.fit import require_hardware, require_logger


def run(config: RunConfig) -> Metrics:
    """One run, whole, or this rank's part of it; what it found, as metrics.json holds it."""
    trainer = config.trainer
    if trainer.num_threads:
        torch.set_num_threads(trainer.num_threads)
    quiet_libraries()
    with ranks.process_group(
        trainer.processes, trainer.accelerator != "cpu" and torch.cuda.is_available(), single_process=bool(trainer.zero)
    ):
        return _run(config)


def _run(config: RunConfig) -> Metrics:
    start = time.perf_counter()
    config = _resolved(config)
    require_hardware(config.trainer)
    folder = find_run(config)
    config = replace(config, run_dir=str(folder))
    screen = Screen(config)
    if ranks.world_size() > 1:
        preflight(config, folder, screen)
    prepared = prepare(config, folder, screen)
    metrics = _origin(config)
    metrics |= {"run/method": config.who, "dual/c_limit": config.constraint.c_limit, **prepared.metrics}
    with watched(config, folder, metrics) as watch:
        metrics = _trained_and_judged(prepared, metrics, screen)
        metrics["run/wall_seconds"] = time.perf_counter() - start
        prepared.bench.history.write()
        _write(metrics, config, folder)
        if watch is not None:
            publish(watch, config, folder, metrics, report.rows(metrics))
    if ranks.is_first():
        screen.end(metrics, folder)
    ranks.barrier()
    return metrics


def _trained_and_judged(prepared: Prepared, metrics: Metrics, screen: Screen) -> Metrics:
    """The policies trained, judged alike and exported; `metrics` and what that found."""
    config = prepared.bench.config
    policies: dict[str, nn.Module] = {}
    if "policy" in config.stages:
        for who in config.trained:
            policies[who], result = train_policy(prepared, who, screen)
            metrics |= result
    metrics = _measured(metrics | evaluate_all(prepared, policies, screen))
    if ranks.is_first():
        for who, policy in policies.items():
            export_policy(policy, prepared.bench.tokenizer, prepared.bench.folder / "export" / who, who, config, metrics)
    ledger = prepared.bench.store.ledger
    metrics |= {f"store/{kind}_forwards": ledger.total(f"store/{kind}_forwards") for kind in ("reward", "cost", "reference")}
    if ranks.is_first():
        for kind in ("reward", "cost"):
            export_scorer(getattr(prepared.evaluator, kind), prepared.bench.folder / "export" / kind, kind)
    return metrics


def evaluate(config: RunConfig) -> Metrics:
    """Judges `policy=FOLDER`, any Hugging Face model, like a policy trained here; what it found, as metrics.json holds it."""
    start = time.perf_counter()
    config = _resolved(alone(config))
    require_hardware(config.trainer)
    folder = find_run(config)
    config = replace(config, run_dir=str(folder))
    screen = Screen(config)
    setup = build_evaluation(config, folder, screen)
    sources = {f"run/{who}": path for who, path in zip(config.external_names, config.external_policies, strict=True)}
    metrics: Metrics = {**_origin(config), "run/method": config.external_names[0], **sources, **setup.metrics}
    metrics |= {"dual/c_limit": config.constraint.c_limit, **evaluate_by_samples(setup, external_policies(setup), screen)}
    metrics = _measured(metrics) | {"run/wall_seconds": time.perf_counter() - start}
    _write(metrics, config, folder)
    screen.end(metrics, folder)
    return metrics


def _origin(config: RunConfig) -> Metrics:
    return {"run/seed": config.seed, "run/git_commit": git_commit(), "run/command": shlex.join(["python", *sys.argv])}


def _write(metrics: Metrics, config: RunConfig, folder: Path) -> None:
    """metrics.json and the report, by the first rank."""
    if not ranks.is_first():
        return
    write_json(folder / "metrics.json", metrics)
    if "report" in config.stages:
        report.build(folder)


def _measured(metrics: Metrics) -> Metrics:
    """Without what is not a number: the interval of a mean over one prompt, say."""
    return {key: value for key, value in metrics.items() if isinstance(value, str) or math.isfinite(value)}


def _resolved(config: RunConfig) -> RunConfig:
    """The configuration as this machine can run it: `trainer.precision=auto` decided, its logger there."""
    quiet_libraries()
    require_logger(config.logger)
    accelerator, attention = config.trainer.accelerator, config.model.attention
    if attention == "flex_attention" and accelerator == "auto" and not torch.cuda.is_available():
        raise ConfigError(
            f"model.attention={attention}: expected a GPU, trainer.accelerator=auto found none; use model.attention=sdpa"
        )
    precision = resolve_precision(config.trainer.precision, accelerator)
    return replace(config, trainer=replace(config.trainer, precision=precision))


def check(config: RunConfig) -> None:
    """The pre-flight: composes and checks all that needs no training, prints the plan; a GPU need not be there."""
    config = _resolved(config)
    screen = Screen(config)
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        screen.say("hardware   not checked: trainer.accelerator=gpu, and this machine has none")
    else:
        require_hardware(config.trainer)
    if config.generation.engine == "vllm" and not vllm_generation.installed():
        screen.say("sampling   not checked: generation.engine=vllm, and vllm is not installed here")
    preflight(config, find_run(config), screen)
    screen.say("nothing was trained (mode=check)")
