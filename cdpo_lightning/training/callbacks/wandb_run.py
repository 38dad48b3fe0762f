"""The Weights & Biases run of a job: one per job, with its configuration and tags, its curves, and its results at the end.

Curves are named as in history.csv; those of a baseline are prefixed with its name. `dual/*` is plotted against the dual round,
everything else against the training step.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdpo_lightning import ranks
from cdpo_lightning.config import RunConfig
from cdpo_lightning.store.files import atomic_file

STEP, ROUND = "trainer/global_step", "dual/round"
_CURVES = ("loss", "epoch", "logp/*", "implicit_reward/*")
_NOT_IN_NAME = ("run_dir", "artifacts_dir", "resume", "logger", "hydra")
SHOWN_PROMPTS = 64  # in the table of samples
LONGEST_NAME, LONGEST_TAG = 128, 64  # limits of the W&B server
Rows = Sequence[Mapping[str, Any]]


@contextmanager
def open_run(config: RunConfig, folder: Path, facts: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the W&B run of the job; None if `logger` is another one, or if this is not rank 0. Finish the run at the end.

    Args:
        config: is stored in the run as a whole.
        folder: of the job. Its file `wandb_id` holds the id of the W&B run, so a resumed job continues the same W&B run.
        facts: is stored with the configuration, such as the commit and the hash of the data.
    """
    if config.logger.kind != "wandb" or not ranks.is_first():
        yield None
        return
    run = _start_run(config, folder, facts)
    success = False
    try:
        yield run
        success = True
    finally:
        run.finish(exit_code=0 if success else 1)


def _start_run(config: RunConfig, folder: Path, facts: Mapping[str, Any]) -> Any:
    import wandb

    logger = config.logger
    run = wandb.init(
        project=logger.project,
        group=logger.group or None,
        name=_name(config),
        id=_run_id(folder),
        resume=None if logger.offline else "allow",
        dir=str(folder),
        mode="offline" if logger.offline else "online",
        config={**dataclasses.asdict(config), "facts": dict(facts)},
        tags=_tags(config, facts),
        reinit="finish_previous",
    )
    define_axes(run, config.who, [who for who in config.trained if who != config.who])
    return run


def define_axes(run: Any, main: str, others: Sequence[str]) -> None:
    """Tell W&B which metric is the x-axis of each curve."""
    run.define_metric(STEP, hidden=True)
    for prefix in ("", *(f"{who}/" for who in others)):
        run.define_metric(prefix + ROUND, hidden=True)
        run.define_metric(prefix + "dual/*", step_metric=prefix + ROUND)
        for curve in _CURVES:
            run.define_metric(prefix + curve, step_metric=STEP)


def current_run() -> Any:
    """Return the W&B run that is open in this process, or None."""
    import wandb

    return wandb.run


def _run_id(folder: Path) -> str:
    """Return the id of the W&B run; create it once and keep it in the job's folder."""
    path = folder / "wandb_id"
    if not path.is_file():
        with atomic_file(path) as temporary:
            temporary.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _name(config: RunConfig) -> str:
    """Return `logger.name`, else the overrides on the command line, else the name of the configuration."""
    overrides = [text for text in sys.argv[1:] if "=" in text and not text.lstrip("+~").startswith(_NOT_IN_NAME)]
    return (config.logger.name or " ".join(overrides) or config.name)[:LONGEST_NAME]


def _tags(config: RunConfig, facts: Mapping[str, Any]) -> list[str]:
    named = {
        "beta": f"{config.policy.beta:g}",
        "c_limit": f"{config.constraint.c_limit:g}",
        "method": config.who,
        "seed": str(config.seed),
        "commit": facts.get("run/git_commit"),
        "data": facts.get("data/hash"),
    }
    return [f"{name}={value}"[:LONGEST_TAG] for name, value in named.items() if value is not None]


def publish(run: Any, config: RunConfig, folder: Path, metrics: Mapping[str, Any], table: Rows) -> None:
    """Log the results: metrics, final table, samples before and after training, figures and, if configured, the exported model."""
    import wandb

    run.summary.update(dict(metrics))
    if table:
        columns = list(table[0])
        run.log({"final/table": wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in table])})
    rows = before_and_after(folder / "samples.jsonl", config.who)
    if rows:
        run.log({"final/samples": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
    pictures = sorted((folder / "report").glob("*.png"))
    if pictures:
        run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in pictures})
    export = folder / "export" / config.who
    if config.logger.artifact and export.is_dir():
        artifact = wandb.Artifact(f"{config.who}-{run.id}", type="model", metadata={"beta": config.policy.beta})
        artifact.add_dir(str(export))
        run.log_artifact(artifact)


def before_and_after(path: Path, who: str) -> list[dict[str, Any]]:
    """Return one row per prompt: the first response of the reference and of `who`, with their scores; no rows without samples."""
    answers: dict[str, dict[str, dict[str, Any]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        sample = json.loads(line)
        answers.setdefault(sample["prompt"], {}).setdefault(sample["who"], sample)
    both = [(prompt, result["reference"], result[who]) for prompt, result in answers.items() if {"reference", who} <= result.keys()]
    return [
        {
            "prompt": prompt,
            "before": before["response"],
            "after": after["response"],
            "reward before": before["reward"],
            "reward after": after["reward"],
            "cost before": before["cost"],
            "cost after": after["cost"],
        }
        for prompt, before, after in both[:SHOWN_PROMPTS]
    ]
