"""Runs every method on the same worlds, and reports its distance to the exact optimum and the compute of its training.

    python benchmarks/methods.py [--jobs 2] [--folder outputs/methods] [--seeds 0 1 2 3 4] [--write-only]

For each seed one run of `+experiment=table1`, with a limit in the middle of the range in which it binds; then O-PD-DPO and PD-DPO
in worlds whose pairs lack each prompt's best responses. Each run has a folder of its own, so a second start continues where the
first was stopped. Writes docs/results/methods.md and docs/images/methods.png from the completed runs.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from certificate import binding_range, compose
from methods_page import Row, write

SHARE, WITHHELD = 0.5, 0.25
WORLDS: Mapping[str, list[str]] = {
    "all": ["+experiment=table1", "stages=[sft,reward,cost,policy]"],
    "withheld": [
        "+experiment=table1",
        "stages=[sft,reward,cost,policy]",
        f"dataset.withheld={WITHHELD}",
        "method=o_pd_dpo",
        "method.baselines=[pd_dpo]",
    ],
}


@dataclass(frozen=True)
class Job:
    """One run: a world's kind and its seed."""

    world: str
    seed: int

    def overrides(self, folder: Path) -> list[str]:
        """Return the overrides of the run, without its limit and its folder."""
        more = [f"seed={self.seed}", f"artifacts_dir={folder / 'artifacts'}", "trainer.num_threads=1"]
        return [*WORLDS[self.world], *more]


def one(job: Job, folder: Path) -> dict[str, object]:
    """Return the metrics of a job; run it first if it has none."""
    location = folder / f"{job.world}-seed{job.seed}"
    path = location / "metrics.json"
    if not path.exists():
        from cdpo_lightning.pipeline.run import run

        limits = folder / f"limit-{job.seed}.json"
        if not limits.exists():
            low, high = binding_range(Job("all", job.seed).overrides(folder), folder / f"range-seed{job.seed}")
            limits.write_text(json.dumps(low + SHARE * (high - low)))
        limit = json.loads(limits.read_text())
        begun = ["resume=true"] if (location / "identity").exists() else []
        run(compose([*job.overrides(folder), *begun, f"run_dir={location}", f"constraint.c_limit={limit:.6f}"]))
    metrics: dict[str, object] = json.loads(path.read_text())
    return metrics


def rows(m: Mapping[str, object]) -> dict[str, Row]:
    """Return the figures of every method that the run evaluated."""
    result = {}
    for who in [key.split("/")[1] for key in m if key.startswith("exact/") and key.endswith("/kl_to_optimum")]:
        if who == "reference":
            continue

        def of(key: str, who: str = who) -> float:
            return float(m.get(key.format(who), float("nan")))  # type: ignore[arg-type]

        result[who] = {
            "KL to optimum": of("exact/{}/kl_to_optimum"),
            "E[c] - C_limit": of("exact/{}/expected_cost") - of("dual/c_limit"),
            "E[r]": of("exact/{}/expected_reward"),
            "support": of("exact/{}/support_mass"),
            "trained tokens": of("budget/{}/trained_tokens"),
            "sampled tokens": of("budget/{}/sampled_tokens"),
            "scorer forwards": of("budget/{}/scorer_forwards"),
            "models": of("budget/{}/models_resident"),
            "s": of("budget/{}/wall_seconds"),
        }
    return result


def _start(job: Job, folder: Path) -> None:
    with (folder / f"{job.world}-seed{job.seed}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        one(job, folder)


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("outputs/methods"))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--write-only", action="store_true", help="the page of the runs that have ended")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    jobs = [Job(world, seed) for world in WORLDS for seed in args.seeds]
    if not args.write_only:
        with ProcessPoolExecutor(args.jobs) as pool:
            list(pool.map(_start, jobs, [folder] * len(jobs)))
    ended = [job for job in jobs if (folder / f"{job.world}-seed{job.seed}" / "metrics.json").exists()]
    write({world: {job.seed: rows(one(job, folder)) for job in ended if job.world == world} for world in WORLDS}, WITHHELD)


if __name__ == "__main__":
    main()
