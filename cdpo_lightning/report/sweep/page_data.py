"""Collects the data of a sweep's page, with numbers rounded to five significant digits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdpo_lightning.config.methods import REFERENCE
from cdpo_lightning.report.figures.style import colour_of
from cdpo_lightning.report.formatting import finite, main_policy, name_of
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.run.verdict import unreachable
from cdpo_lightning.report.sweep.load import Sweep, first_responses

SHOWN_RESPONSES = 1500  # on the page, of all runs together
SHOWN_PROMPTS = 8
LONGEST_RESPONSE = 1200  # characters; the rest is in the run's samples.jsonl
_DIGITS = 5  # significant


def page_data(sweep: Sweep, target: Path, jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return all data that the script of the page reads; paths are relative to the folder `target`."""
    policies = {point["who"] for point in sweep.points}
    return _rounded(
        {
            "keys": sweep.keys,
            "shared": {key: _text(value) for key, value in sweep.shared.items()},
            "runs": [_run(sweep, at, run, target) for at, run in enumerate(sweep.runs)],
            "points": sweep.points,
            "names": {policy: name_of(policy) for policy in policies},
            "colours": {policy: colour_of(policy) for policy in policies},
            "reference": REFERENCE,
            "frontiers": exact_frontiers(sweep),
            "samples": samples(sweep),
            "jobs": [{key: job.get(key) for key in ("number", "state", "overrides", "message")} for job in jobs],
        }
    )


def _run(sweep: Sweep, at: int, run: Run, target: Path) -> dict[str, Any]:
    metrics, main = run.metrics, main_policy(run.metrics)
    report = run.folder / "report" / "index.html"
    reachable = not unreachable(metrics)
    exact = [finite(metrics, f"exact/expected_{kind}") for kind in ("cost", "reward")] if reachable else [None, None]
    return {
        "name": run.folder.name,
        "who": main,
        "values": [_text(sweep.value(at, key)) for key in sweep.keys],
        "limit": finite(metrics, "dual/c_limit"),
        "lambda": finite(metrics, "dual/lambda"),
        "exactLambda": finite(metrics, "exact/lambda") if reachable else None,
        "exact": exact,
        "alarm": metrics.get("dual/alarm"),
        "seed": metrics.get("run/seed"),
        "commit": metrics.get("run/git_commit"),
        "data": metrics.get("data/hash"),
        "seconds": finite(metrics, "run/wall_seconds"),
        "command": metrics.get("run/command", ""),
        "config": {key: _text(value) for key, value in sweep.differing[at].items()},
        "page": os.path.relpath(report, target) if report.is_file() else None,
        "rounds": [_round(row) for row in run.rounds if row.get("who", main) == main],
    }


def _round(row: Mapping[str, Any]) -> list[float | None]:
    keys = ("round", "dual/lambda", "dual/expected_cost", "dual/expected_cost_se")
    return [finite(row, key) for key in keys]


def _text(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else json.dumps(value, default=str)


def exact_frontiers(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the exact frontier of each beta, from the first run that has one: points [lambda, E[c], E[r]] by lambda."""
    frontiers: dict[str, dict[str, Any]] = {}
    for at, run in enumerate(sweep.runs):
        beta = _text(sweep.value(at, "policy.beta"))
        if run.frontier and str(beta) not in frontiers:
            frontiers[str(beta)] = {"beta": beta, "points": run.frontier}
    return list(frontiers.values())


def samples(sweep: Sweep) -> list[dict[str, Any]]:
    """Return prompts with the first response of each run's main policy, and of the first run's reference."""
    if not sweep.runs:
        return []
    count = max(2, min(SHOWN_PROMPTS, SHOWN_RESPONSES // len(sweep.runs)))
    prompts: list[str] = []
    responses: list[tuple[int, str, Mapping[str, Mapping[str, Any]]]] = []
    for at, run in enumerate(sweep.runs):
        main = main_policy(run.metrics)
        for policy in [*([REFERENCE] if at == 0 else []), *([main] if main and main != REFERENCE else [])]:
            first = first_responses(run.folder, policy, prompts)
            prompts = prompts or list(first)[:count]
            responses.append((at, policy, first))
    return [
        {"prompt": prompt, "responses": [_response(at, one, first[prompt]) for at, one, first in responses if prompt in first]}
        for prompt in prompts
    ]


def _response(at: int, policy: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    text = str(sample["response"])
    shown = text if len(text) <= LONGEST_RESPONSE else text[:LONGEST_RESPONSE] + " …"
    return {"run": at, "who": policy, "text": shown, "reward": finite(sample, "reward"), "cost": finite(sample, "cost")}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
