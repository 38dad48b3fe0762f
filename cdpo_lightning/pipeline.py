"""A run from its configuration to its report: the stages in order, each skipped where the store already has its result."""

from __future__ import annotations

import math
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from cdpo_lightning import report
from cdpo_lightning.artifacts import write_json
from cdpo_lightning.config import RunConfig
from cdpo_lightning.console import Screen, quiet_libraries
from cdpo_lightning.data.corpus import load_corpus
from cdpo_lightning.evaluation import Metrics
from cdpo_lightning.export import export_policy, export_scorer
from cdpo_lightning.models.causal_lm import resolve_precision
from cdpo_lightning.run_folder import find_run, git_commit
from cdpo_lightning.stages.bench import load_tokenizer, require_context, require_examples
from cdpo_lightning.stages.judging import judge_all, judge_by_samples
from cdpo_lightning.stages.policy import train_policy
from cdpo_lightning.stages.prepare import convene, prepare
from cdpo_lightning.stages.visitors import alone, visitors
from cdpo_lightning.training import require_hardware, require_logger


def run(config: RunConfig) -> Metrics:
    """One run, whole; what it found, as metrics.json holds it."""
    start = time.perf_counter()
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    config, folder = _admitted(config)
    config = replace(config, run_dir=str(folder))
    screen = Screen(config)
    prepared = prepare(config, folder, screen)
    metrics = _origin(config)
    metrics |= {"run/method": config.who, "dual/c_limit": config.constraint.c_limit, **prepared.metrics}
    policies: dict[str, nn.Module] = {}
    if "policy" in config.stages:
        for who in [*config.method.baselines, config.who]:
            if who not in policies:
                policies[who], found = train_policy(prepared, who, screen)
                metrics |= found
    metrics = _measured(metrics | judge_all(prepared, policies, screen))
    for who, policy in policies.items():
        export_policy(policy, prepared.bench.tokenizer, folder / "export" / who, who, config, metrics)
    ledger = prepared.bench.store.ledger
    metrics |= {f"store/{kind}_forwards": ledger.total(f"store/{kind}_forwards") for kind in ("reward", "cost", "reference")}
    for kind in ("reward", "cost"):
        export_scorer(getattr(prepared.judge, kind), folder / "export" / kind, kind)
    metrics["run/wall_seconds"] = time.perf_counter() - start
    prepared.bench.history.write()
    return _finish(metrics, config, folder, screen)


def evaluate(config: RunConfig) -> Metrics:
    """Judges `policy=FOLDER`, any Hugging Face model, like a policy trained here; what it found, as metrics.json holds it."""
    start = time.perf_counter()
    config, folder = _admitted(alone(config))
    config = replace(config, run_dir=str(folder))
    screen = Screen(config)
    court = convene(config, folder, screen)
    judged = {f"run/{who}": path for who, path in zip(config.judges, config.judged, strict=True)}
    metrics: Metrics = {**_origin(config), "run/method": config.judges[0], **judged, **court.metrics}
    metrics |= {"dual/c_limit": config.constraint.c_limit, **judge_by_samples(court, visitors(court), screen)}
    return _finish(_measured(metrics) | {"run/wall_seconds": time.perf_counter() - start}, config, folder, screen)


def _origin(config: RunConfig) -> Metrics:
    return {"run/seed": config.seed, "run/git_commit": git_commit(), "run/command": shlex.join(["python", *sys.argv])}


def _finish(metrics: Metrics, config: RunConfig, folder: Path, screen: Screen) -> Metrics:
    """Writes metrics.json and the report, and ends the screen."""
    write_json(folder / "metrics.json", metrics)
    if "report" in config.stages:
        report.build(folder)
    screen.end(metrics, folder)
    return metrics


def _measured(metrics: Metrics) -> Metrics:
    """Without what is not a number: the interval of a mean over one prompt, say."""
    return {key: value for key, value in metrics.items() if isinstance(value, str) or math.isfinite(value)}


def _admitted(config: RunConfig) -> tuple[RunConfig, Path]:
    """The configuration as this machine can run it (`trainer.precision=auto` resolved), and its folder; nothing is written."""
    quiet_libraries()
    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    config = replace(config, trainer=replace(config.trainer, precision=precision))
    require_hardware(config.trainer)
    require_logger(config.logger)
    return config, find_run(config)


def objective(config: RunConfig, metrics: Metrics | None) -> float | None:
    """What a sweep maximises: the run's E[reward] if its E[cost] meets the limit, else minus infinity; None if not evaluated."""
    reward, cost = ((metrics or {}).get(f"eval/{config.who}/{name}_mean") for name in ("reward", "cost"))
    if not isinstance(reward, float) or not isinstance(cost, float):
        return None
    return reward if cost <= config.constraint.c_limit else -float("inf")


def check(config: RunConfig) -> None:
    """Composes and checks all that needs no training: folder, hardware, data, audit, tokenizer, lengths; prints the plan."""
    config, folder = _admitted(config)
    screen = Screen(config)
    corpus = load_corpus(config.dataset, config.evaluation, config.seed)
    screen.data(corpus)
    require_examples(config, corpus)
    tokenizer = load_tokenizer(config)
    require_context(config)
    screen.say(f"tokenizer  {len(tokenizer):,} tokens, eos {tokenizer.eos_token!r}, template {config.model.template}")
    screen.say(f"run_dir    {folder}")
    for stage in config.stages:
        screen.say(f"stage      {stage}")
    screen.say("nothing was trained (mode=check)")
