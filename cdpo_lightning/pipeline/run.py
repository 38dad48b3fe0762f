"""The modes of `run.py`: run all stages up to the report, evaluate external policies, or only check."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from cdpo_lightning import ranks, report
from cdpo_lightning.config import ResolvedMethod, RunConfig
from cdpo_lightning.console import Screen, quiet_libraries
from cdpo_lightning.constraints.updates import make_update
from cdpo_lightning.errors import ConfigError, ModelError
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.models.lm.causal_lm import resolve_precision
from cdpo_lightning.models.sampling import vllm_generation
from cdpo_lightning.pipeline.evaluate.export import export_policy, export_scorer
from cdpo_lightning.pipeline.evaluate.external_policies import external_candidates, with_first_policy_as_reference
from cdpo_lightning.pipeline.evaluate.policies import evaluate_by_samples, evaluate_exactly, make_candidates
from cdpo_lightning.pipeline.methods.ppo import train_ppo
from cdpo_lightning.pipeline.methods.preference import TrainedPolicy, train_preference
from cdpo_lightning.pipeline.methods.primal_dual import train_primal_dual
from cdpo_lightning.pipeline.preflight.checks import preflight
from cdpo_lightning.pipeline.prepare import (
    EvaluationSetup,
    MethodInputs,
    build_evaluation,
    load_stage_inputs,
    make_method_inputs,
    open_store,
    train_listed_stages,
)
from cdpo_lightning.pipeline.sft import sft_compute
from cdpo_lightning.store.artifacts import Store
from cdpo_lightning.store.files import write_json
from cdpo_lightning.store.history import History
from cdpo_lightning.store.run_folder import find_run, git_commit
from cdpo_lightning.training.callbacks.wandb_run import open_run, publish
from cdpo_lightning.training.fit import require_hardware
from cdpo_lightning.training.loggers import require_logger

_FORWARDS = ("store/reward_forwards", "store/cost_forwards", "store/reference_forwards")


def run(config: RunConfig) -> Metrics:
    """Run all stages, or this rank's part of them; return the metrics, as in metrics.json."""
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
    store, history = open_store(config, folder)
    inputs = load_stage_inputs(config, folder, store, history, screen)
    metrics = _origin(config) | {"run/method": config.who, "dual/c_limit": config.constraint.c_limit}
    if not {"policy", "evaluate"} & set(config.stages):
        metrics |= train_listed_stages(inputs, screen)
        _finish(metrics, config, folder, store, history, start)
    else:
        setup, measured = build_evaluation(inputs, folder, screen)
        method_inputs, counts = make_method_inputs(inputs, setup, screen)
        metrics |= measured | counts
        with open_run(config, folder, metrics) as watch:
            metrics = _finite(metrics) | _train_and_evaluate(config, setup, method_inputs, folder, screen)
            _finish(metrics, config, folder, store, history, start)
            if watch is not None:
                publish(watch, config, folder, metrics, report.result_rows(metrics))
    if ranks.is_first():
        screen.end(metrics, folder)
    ranks.barrier()
    return metrics


def _finish(metrics: Metrics, config: RunConfig, folder: Path, store: Store, history: History, start: float) -> None:
    """Add forward passes and seconds to the metrics; write history, metrics.json and the report."""
    metrics |= {key: store.forward_counter.total(key) for key in _FORWARDS}
    metrics["run/wall_seconds"] = time.perf_counter() - start
    history.write()
    _write(metrics, config, folder)


def _train_and_evaluate(config: RunConfig, setup: EvaluationSetup, inputs: MethodInputs, folder: Path, screen: Screen) -> Metrics:
    """Train every method, evaluate all policies in the same way and export them; return the metrics."""
    policies: dict[str, nn.Module] = {}
    metrics: Metrics = {}
    for who in config.trained if "policy" in config.stages else []:
        trained = train_policy(config, inputs, who, screen)
        policies[who] = trained.model
        metrics |= trained.compute.metrics(who)
        if who == config.who:
            metrics |= trained.dual | trained.speed
        else:
            metrics |= _baseline_multipliers(who, trained.dual)
    candidates = make_candidates(inputs.evaluator.reference, policies, "sft" in config.stages)
    metrics |= evaluate_exactly(inputs.exact, candidates, inputs.inference, folder)
    if "evaluate" in config.stages:
        metrics |= evaluate_by_samples(config, setup, candidates, folder, screen)
    metrics = _finite(metrics)
    if ranks.is_first():
        for who, policy in policies.items():
            export_policy(policy, inputs.evaluator.encoder, folder / "export" / who, who, config, metrics)
        for name, scorer in inputs.evaluator.scorers.items():
            try:
                export_scorer(scorer, folder / "export" / name, name)
            except ModelError as error:  # the run's results are whole without it
                screen.say(f"note: not exported: {error}")
    return metrics


def _baseline_multipliers(who: str, dual: Metrics) -> Metrics:
    """Return `dual/<who>/<constraint>/lambda` of a baseline, and the former key of `cost`."""
    return {f"dual/{who}/{key.removeprefix('dual/')}": value for key, value in dual.items() if key.endswith("/lambda")}


def train_policy(config: RunConfig, inputs: MethodInputs, who: str, screen: Screen) -> TrainedPolicy:
    """Return the policy `who`, trained by the trainer that its method's specification names."""
    method = config.resolve_method(who)
    if method.spec.trainer == "none":  # the reference itself
        compute = sft_compute(config, inputs.evaluator.encoder, inputs.demonstrations)
        return TrainedPolicy(inputs.evaluator.reference, {}, {}, compute)
    return _TRAINERS[method.spec.trainer](inputs, method, screen)


_TRAINERS: Mapping[str, Callable[[MethodInputs, ResolvedMethod, Screen], TrainedPolicy]] = {
    "preference": train_preference,
    "primal_dual": train_primal_dual,
    "ppo": train_ppo,
}


def evaluate(config: RunConfig) -> Metrics:
    """Evaluate `policy=FOLDER`, any Hugging Face model, like a policy trained here; return the metrics, as in metrics.json."""
    start = time.perf_counter()
    config = _resolved(with_first_policy_as_reference(config))
    require_hardware(config.trainer)
    folder = find_run(config)
    config = replace(config, run_dir=str(folder))
    screen = Screen(config)
    setup, measured = build_evaluation(load_stage_inputs(config, folder, *open_store(config, folder), screen), folder, screen)
    sources = {f"run/{who}": path for who, path in zip(config.external_names, config.external_policies, strict=True)}
    metrics: Metrics = {**_origin(config), "run/method": config.external_names[0], **sources, **measured}
    metrics["dual/c_limit"] = config.constraint.c_limit
    metrics |= evaluate_by_samples(config, setup, external_candidates(config, setup), folder, screen)
    metrics = _finite(metrics) | {"run/wall_seconds": time.perf_counter() - start}
    _write(metrics, config, folder)
    screen.end(metrics, folder)
    return metrics


def _origin(config: RunConfig) -> Metrics:
    return {"run/seed": config.seed, "run/git_commit": git_commit(), "run/command": shlex.join(["python", *sys.argv])}


def _write(metrics: Metrics, config: RunConfig, folder: Path) -> None:
    """Write metrics.json and the report, on the first rank."""
    if not ranks.is_first():
        return
    write_json(folder / "metrics.json", metrics)
    if "report" in config.stages:
        report.build(folder)


def _finite(metrics: Metrics) -> Metrics:
    """Return the metrics except numbers that are not finite, such as the interval of a mean over one prompt."""
    return {key: value for key, value in metrics.items() if isinstance(value, str) or math.isfinite(value)}


def _resolved(config: RunConfig) -> RunConfig:
    """Return the configuration with `trainer.precision=auto` resolved for this machine.

    Raises:
        ConfigError: the logger is not installed, or `model.attention=flex_attention` without a GPU.
    """
    quiet_libraries()
    require_logger(config.logger)
    for who in config.trained if not config.external_policies else []:
        make_update(config.resolve_method(who).constraint)  # a wrong name is refused now, not after hours
    accelerator, attention = config.trainer.accelerator, config.model.attention
    if attention == "flex_attention" and accelerator == "auto" and not torch.cuda.is_available():
        raise ConfigError(
            f"model.attention={attention}: expected a GPU, trainer.accelerator=auto has none here; use model.attention=sdpa"
        )
    precision = resolve_precision(config.trainer.precision, accelerator)
    return replace(config, trainer=replace(config.trainer, precision=precision))


def check(config: RunConfig) -> None:
    """Run the pre-flight checks and print the estimates; a GPU need not be present."""
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
