"""Many runs as one table: what their configurations share, where they differ, and the figures of everyone judged in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdpo_lightning.report.formatting import feasible, finite, main_who, whos
from cdpo_lightning.report.load import Run, load_summary
from cdpo_lightning.report.tables.categories import unsafe_by_category

ALWAYS = ("policy.beta", "constraint.c_limit")  # columns of every table, also where all runs agree
UNTOLD = ("run_dir", "artifacts_dir", "resume", "logger.", "name")  # where a run is written and how it is watched
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FIGURES = {
    "unsafe": "unsafe_rate",
    "cvar": "cost_cvar_90",
    "kl": "kl_to_reference",
    "tokens": "response_tokens_mean",
    "unfinished": "unfinished_rate",
}
Point = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Runs side by side.

    Attributes:
        runs: in the order of their folders.
        shared: keys of the configuration with their values, where all runs have the same.
        differing: for each run the values of the other keys, in the order in which the keys stand.
        points: everyone judged in each run, the figures by short names; `main` is whom the run is about.
    """

    runs: tuple[Run, ...]
    shared: Mapping[str, Any]
    differing: tuple[Mapping[str, Any], ...]
    points: tuple[Point, ...] = field(default=())

    @property
    def keys(self) -> list[str]:
        """What tells the runs apart: beta and C_limit first, then every key that differs."""
        differing = list(self.differing[0]) if self.differing else []
        shown = [key for key in ALWAYS if key in differing or key in self.shared]
        return shown + [key for key in differing if key not in shown and not key.startswith(UNTOLD)]

    def value(self, run: int, key: str) -> Any:
        """The value of a key in a run."""
        return self.differing[run].get(key, self.shared.get(key))


def load_sweep(folders: Sequence[Path]) -> Sweep:
    """The runs of these folders.

    Raises:
        DataError: a run's files cannot be read.
    """
    runs = tuple(load_summary(folder) for folder in folders)
    configs = [flat(run.config_text) for run in runs]
    names = list(dict.fromkeys(name for config in configs for name in config))
    same = {name for name in names if len({_plain(config.get(name)) for config in configs}) == 1}
    shared = {name: configs[0][name] for name in names if name in same}
    differing = tuple({name: config.get(name) for name in names if name not in same} for config in configs)
    points = tuple(point for at, run in enumerate(runs) for point in _points(at, run))
    return Sweep(runs, shared, differing, points)


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def flat(text: str) -> dict[str, Any]:
    """`policy.beta` and its like, with their values; nothing of what is not a mapping."""
    try:
        values = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError:
        return {}
    return dict(_flat(values, "")) if isinstance(values, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for name, value in values.items():
        result += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return result


def _points(at: int, run: Run) -> list[Point]:
    main = main_who(run.metrics)
    points = [_point(at, run.metrics, who, who == main) for who in whos(run.metrics) if who != "sft"]
    return [point for point in points if point["cost"][0] is not None and point["reward"][0] is not None]


def _point(at: int, metrics: Mapping[str, Any], who: str, main: bool) -> Point:
    reward, cost = (
        [finite(metrics, f"eval/{who}/{kind}_{end}") for end in ("mean", "ci_low", "ci_high")] for kind in ("reward", "cost")
    )
    figures = {short: finite(metrics, f"eval/{who}/{name}") for short, name in _FIGURES.items()}
    exact = [finite(metrics, f"exact/{who}/{name}") for name in ("expected_cost", "expected_reward")]
    return {
        "run": at,
        "who": who,
        "main": main,
        "reward": reward,
        "cost": cost,
        "feasible": feasible(metrics, who),
        "exact": exact,
        "klOptimum": finite(metrics, f"exact/{who}/kl_to_optimum"),
        "categories": unsafe_by_category(metrics, who),
        **figures,
    }


def first_answers(folder: Path, who: str, prompts: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The first response of `who` to each of the prompts in samples.jsonl; without prompts to every prompt."""
    path, wanted, mark = folder / "samples.jsonl", set(prompts), json.dumps({"who": who})[1:-1]
    result: dict[str, Mapping[str, Any]] = {}
    if not path.is_file():
        return result
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if mark in line:
                sample = json.loads(line)
                prompt = str(sample["prompt"])
                if sample.get("who") == who and (not wanted or prompt in wanted):
                    result.setdefault(prompt, sample)
                if wanted and len(result) == len(wanted):
                    break
    return result
