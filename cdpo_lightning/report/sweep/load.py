"""Loads many runs as one table: the shared and the differing keys of their configurations, and the metrics of every policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdpo_lightning.config.methods import is_reference
from cdpo_lightning.report.formatting import evaluated_policies, feasible, finite, main_policy
from cdpo_lightning.report.load import Run, load_summary
from cdpo_lightning.report.tables.categories import unsafe_by_category

ALWAYS = ("policy.beta", "constraint.c_limit")  # columns of every table, even if all runs have the same value
HIDDEN = ("run_dir", "artifacts_dir", "resume", "logger.", "name")  # keys that change no result
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MEASURES = {
    "unsafe": "unsafe_rate",
    "cvar": "cost_cvar_90",
    "kl": "kl_to_reference",
    "tokens": "response_tokens_mean",
    "unfinished": "unfinished_rate",
}
Point = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep.

    Attributes:
        runs: in the order of their folders.
        shared: the keys of the configuration that have the same value in all runs, with their values.
        differing: for each run the values of the other keys, in the order of the configuration.
        points: the metrics of every evaluated policy of each run, by short names; `main` marks the run's main policy.
    """

    runs: tuple[Run, ...]
    shared: Mapping[str, Any]
    differing: tuple[Mapping[str, Any], ...]
    points: tuple[Point, ...] = field(default=())

    @property
    def keys(self) -> list[str]:
        """Return the keys that distinguish the runs: beta and C_limit first, then every key that differs."""
        differing = list(self.differing[0]) if self.differing else []
        shown = [key for key in ALWAYS if key in differing or key in self.shared]
        return shown + [key for key in differing if key not in shown and not key.startswith(HIDDEN)]

    def value(self, run: int, key: str) -> Any:
        """Return the value of a key in the run with this index."""
        return self.differing[run].get(key, self.shared.get(key))


def load_sweep(folders: Sequence[Path]) -> Sweep:
    """Load the runs in these folders.

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
    """Return the values of a YAML mapping by dotted keys such as `policy.beta`; empty if the text is no mapping."""
    try:
        values = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError:
        return {}
    return dict(_flat(values, "")) if isinstance(values, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


def _points(at: int, run: Run) -> list[Point]:
    main = main_policy(run.metrics)
    shown = [policy for policy in evaluated_policies(run.metrics) if not is_reference(policy)]  # the reference has its own point
    points = [_point(at, run.metrics, policy, policy == main) for policy in shown]
    return [point for point in points if point["cost"][0] is not None and point["reward"][0] is not None]


def _point(at: int, metrics: Mapping[str, Any], policy: str, main: bool) -> Point:
    reward, cost = (
        [finite(metrics, f"eval/{policy}/{kind}_{end}") for end in ("mean", "ci_low", "ci_high")] for kind in ("reward", "cost")
    )
    measures = {short: finite(metrics, f"eval/{policy}/{name}") for short, name in _MEASURES.items()}
    exact = [finite(metrics, f"exact/{policy}/{name}") for name in ("expected_cost", "expected_reward")]
    return {
        "run": at,
        "who": policy,
        "main": main,
        "reward": reward,
        "cost": cost,
        "feasible": feasible(metrics, policy),
        "exact": exact,
        "klOptimum": finite(metrics, f"exact/{policy}/kl_to_optimum"),
        "categories": unsafe_by_category(metrics, policy),
        **measures,
    }


def first_responses(folder: Path, policy: str, prompts: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return the policy's first response in samples.jsonl to each of these prompts; to every prompt if `prompts` is empty."""
    path, requested, mark = folder / "samples.jsonl", set(prompts), json.dumps({"who": policy})[1:-1]
    first: dict[str, Mapping[str, Any]] = {}
    if not path.is_file():
        return first
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if mark in line:  # reading every line as JSON would take minutes for a large sweep
                sample = json.loads(line)
                prompt = str(sample["prompt"])
                if sample.get("who") == policy and (not requested or prompt in requested):
                    first.setdefault(prompt, sample)
                if requested and len(first) == len(requested):
                    break
    return first
