"""The one Weights & Biases run of a job: opened under the job's name with all that tells it apart, closed with its results.

Curves have the names that history.csv has, those of a baseline with its name in front; what a dual round measured is drawn against
the round, everything else against the training step.
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
_PLACES = ("run_dir", "artifacts_dir", "resume", "logger", "hydra")
SHOWN_PROMPTS = 64  # in the table of samples
LONGEST_NAME, LONGEST_TAG = 128, 64  # what the server takes
Rows = Sequence[Mapping[str, Any]]


@contextmanager
def watched(config: RunConfig, folder: Path, facts: Mapping[str, Any]) -> Iterator[Any]:
    """Around a job: its W&B run, or None where `logger` is another, or on a rank that is not the first.

    Args:
        config: the whole configuration goes into the run.
        folder: the job's; `wandb_id` there names the run, so that a job that goes on goes on in the same one.
        facts: what else is known before training, such as the commit and the hash of the data.
    """
    if config.logger.kind != "wandb" or not ranks.is_first():
        yield None
        return
    run = _open(config, folder, facts)
    done = False
    try:
        yield run
        done = True
    finally:
        run.finish(exit_code=0 if done else 1)


def _open(config: RunConfig, folder: Path, facts: Mapping[str, Any]) -> Any:
    import wandb

    logger = config.logger
    run = wandb.init(
        project=logger.project,
        group=logger.group or None,
        name=_name(config),
        id=_identity(folder),
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
    """Says which curve is drawn against what."""
    run.define_metric(STEP, hidden=True)
    for prefix in ("", *(f"{who}/" for who in others)):
        run.define_metric(prefix + ROUND, hidden=True)
        run.define_metric(prefix + "dual/*", step_metric=prefix + ROUND)
        for curve in _CURVES:
            run.define_metric(prefix + curve, step_metric=STEP)


def current() -> Any:
    """The run that is open in this process, if one is."""
    import wandb

    return wandb.run


def _identity(folder: Path) -> str:
    """The run's id, made once and kept in the job's folder."""
    path = folder / "wandb_id"
    if not path.is_file():
        with atomic_file(path) as temporary:
            temporary.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _name(config: RunConfig) -> str:
    """The name that was asked for, else the overrides on the command line, else the run's own."""
    given = [text for text in sys.argv[1:] if "=" in text and not text.lstrip("+~").startswith(_PLACES)]
    return (config.logger.name or " ".join(given) or config.name)[:LONGEST_NAME]


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
    """Puts the results into the run: every final figure, the table, samples before and after, figures, the export if asked for."""
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
    """The first answer of the reference and of `who` to each prompt, with their scores; none without samples."""
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
