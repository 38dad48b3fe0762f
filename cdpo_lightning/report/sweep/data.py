"""What the page over many runs is drawn from, as plain data: each number once, rounded to what can be seen."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdpo_lightning.report.figures.style import colour_of
from cdpo_lightning.report.formatting import finite, main_who, name_of
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.run.verdict import unreachable
from cdpo_lightning.report.sweep.load import Point, Sweep, first_answers

SHOWN_ANSWERS = 1500  # on the page, of all runs together
SHOWN_PROMPTS = 8
LONGEST_ANSWER = 1200  # characters; the rest is in the run's samples.jsonl
_DIGITS = 5  # significant


def page_data(sweep: Sweep, target: Path, jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything the page's script reads; paths are relative to the folder `target`."""
    return _rounded(
        {
            "keys": sweep.keys,
            "shared": {key: _text(value) for key, value in sweep.shared.items()},
            "runs": [_run(sweep, at, run, target) for at, run in enumerate(sweep.runs)],
            "points": sweep.points,
            "names": {who: name_of(who) for who in {point["who"] for point in sweep.points}},
            "colours": {who: colour_of(who) for who in {point["who"] for point in sweep.points}},
            "frontiers": exact_frontiers(sweep),
            "samples": samples(sweep),
            "jobs": [{key: job.get(key) for key in ("number", "state", "overrides", "message")} for job in jobs],
        }
    )


def _run(sweep: Sweep, at: int, run: Run, target: Path) -> dict[str, Any]:
    metrics, main = run.metrics, main_who(run.metrics)
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
    """The exact reward-cost frontier for each beta, of the first run with it: [lambda, E[c], E[r]] by lambda."""
    result: dict[str, dict[str, Any]] = {}
    for at, run in enumerate(sweep.runs):
        beta = _text(sweep.value(at, "policy.beta"))
        if run.frontier and str(beta) not in result:
            result[str(beta)] = {"beta": beta, "points": run.frontier}
    return list(result.values())


def samples(sweep: Sweep) -> list[dict[str, Any]]:
    """Prompts with the first answer of each run's own policy, and of the first run's reference."""
    if not sweep.runs:
        return []
    count = max(2, min(SHOWN_PROMPTS, SHOWN_ANSWERS // len(sweep.runs)))
    prompts: list[str] = []
    answers: list[tuple[int, str, Mapping[str, Mapping[str, Any]]]] = []
    for at, run in enumerate(sweep.runs):
        main = main_who(run.metrics)
        for who in [*(["reference"] if at == 0 else []), *([main] if main and main != "reference" else [])]:
            result = first_answers(run.folder, who, prompts)
            prompts = prompts or list(result)[:count]
            answers.append((at, who, result))
    return [
        {"prompt": prompt, "answers": [_answer(at, who, result[prompt]) for at, who, result in answers if prompt in result]}
        for prompt in prompts
    ]


def _answer(at: int, who: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    text = str(sample["response"])
    shown = text if len(text) <= LONGEST_ANSWER else text[:LONGEST_ANSWER] + " …"
    return {"run": at, "who": who, "text": shown, "reward": finite(sample, "reward"), "cost": finite(sample, "cost")}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def label(sweep: Sweep, point: Point) -> str:
    """`C-DPO · beta 0.5 · c_limit -0.3`."""
    values = [f"{key.rpartition('.')[2]} {_text(sweep.value(point['run'], key))}" for key in sweep.keys]
    return " · ".join([name_of(point["who"]), *values])
