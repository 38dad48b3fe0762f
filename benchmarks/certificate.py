"""Trains C-DPO on closed-form worlds and compares the policy with the exact optimum.

    python benchmarks/certificate.py [--jobs 2] [--folder outputs/certificate] [--only cdpo]

For seeds 0 to 4, beta 0.3 and 1.0 and limits 25, 50 and 75 % of the way from the lowest reachable E[c] to the
unconstrained one, with the recommended settings, which are the defaults; then the paper's own setting and three
ablations. Each run has a folder of its own, so a second start continues where the first was stopped. Writes
docs/results/certificate.md.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEEDS, BETAS, SHARES = range(5), (0.3, 1.0), (0.25, 0.5, 0.75)
ABLATION_SEEDS, ABLATION_BETA, ABLATION_SHARE = range(3), 0.5, 0.5
PAPER = ["policy.labels=bernoulli", "constraint.update=projected", "policy.refresh=0", "policy.anchor=0"]
VARIANTS = {
    "paper": PAPER,
    "one_shot + loop": ["constraint.lambda_init=one_shot"],
    "one_shot alone": ["constraint=fixed", "constraint.lambda_init=one_shot"],
    "argmax": ["policy.labels=argmax"],
}


@dataclass(frozen=True)
class Job:
    """One run: a setting on the world of a seed, with a limit `share` of the way up the range in which it binds."""

    setting: str
    seed: int
    beta: float
    share: float
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name of the job's folder."""
        return f"{self.setting.replace(' ', '_')}-seed{self.seed}-beta{self.beta:g}-share{self.share:g}"


def compose(overrides: list[str]):  # type: ignore[no-untyped-def]
    """Return the parsed configuration with `overrides`."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from cdpo_lightning.config import parse

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return parse(hydra_compose("config", overrides=overrides))


def common(job: Job, folder: Path) -> list[str]:
    """Return the overrides that all runs of a world share, so that the store serves them all."""
    return [
        f"seed={job.seed}",
        f"policy.beta={job.beta}",
        f"artifacts_dir={folder / 'artifacts'}",
        f"run_dir={folder / job.name}",
        "method.baselines=[]",
        "stages=[sft,reward,cost,policy]",
        "trainer.num_threads=1",
    ]


def binding_range(overrides: list[str], location: Path) -> tuple[float, float]:
    """Return the lowest reachable and the unconstrained E[c] of the world at the run's beta, by enumeration."""
    from cdpo_lightning.console import Screen
    from cdpo_lightning.pipeline.constants import exact_problem
    from cdpo_lightning.pipeline.prepare import build_evaluation, load_stage_inputs, open_store
    from cdpo_lightning.store.run_folder import find_run

    begun = ["resume=true"] if (location / "identity").exists() else []
    config = compose([*overrides, *begun, f"run_dir={location}"])
    folder = find_run(config)
    screen = Screen(config)
    setup, _ = build_evaluation(load_stage_inputs(config, folder, *open_store(config, folder), screen), folder, screen)
    problem = exact_problem(setup.corpus, setup.constraints, setup.evaluator.encoder, setup.constants, config.policy.beta)
    assert problem is not None, "the world is closed_form"
    metrics = problem.metrics()
    return metrics["exact/cost/reachable_min"], metrics["exact/cost/unconstrained"]


def one(job: Job, folder: Path) -> dict[str, object]:
    """Return the metrics of a job; run it now unless they are there."""
    path = folder / job.name / "metrics.json"
    if not path.exists():
        from cdpo_lightning.pipeline.run import run

        range_file = folder / f"range-{job.seed}-{job.beta:g}.json"
        if not range_file.exists():
            range_file.write_text(json.dumps(binding_range(common(job, folder), folder / f"range-{job.name}")))
        low, high = json.loads(range_file.read_text())
        limit = low + job.share * (high - low)
        begun = ["resume=true"] if (folder / job.name / "identity").exists() else []
        run(compose([*common(job, folder), *begun, *job.overrides, f"constraint.c_limit={limit:.6f}"]))
    metrics: dict[str, object] = json.loads(path.read_text())
    return metrics


def row(job: Job, m: dict[str, object]) -> dict[str, float | str | bool]:
    """Return the figures of the certificate, and whether all of its five bounds hold."""
    who = "cdpo" if "exact/cdpo/expected_cost" in m else "cdpo_fixed"
    value = {k: float(m[f"exact/{who}/{k}"]) for k in ("expected_cost", "kl_to_optimum", "support_mass", "duality_gap")}  # type: ignore[arg-type]
    lam, exact, limit = (float(m[k]) for k in ("dual/lambda", "exact/lambda", "dual/c_limit"))  # type: ignore[arg-type]
    holds = (
        abs(lam - exact) <= 0.1 * max(1, exact)
        and abs(value["expected_cost"] - limit) <= 0.05
        and value["kl_to_optimum"] <= 0.03
        and value["support_mass"] >= 0.95
        and value["duality_gap"] <= 0.03
    )
    return {
        "setting": job.setting,
        "seed": job.seed,
        "beta": job.beta,
        "share": job.share,
        "C_limit": limit,
        "lambda": lam,
        "exact lambda": exact,
        "E[c]": value["expected_cost"],
        "KL to optimum": value["kl_to_optimum"],
        "support": value["support_mass"],
        "gap": value["duality_gap"],
        "holds": holds,
    }


def _cell(value: float | str | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, float | str | bool]]) -> str:
    """Return the rows in Markdown."""
    head = list(rows[0])
    cells = [[_cell(value) for value in r.values()] for r in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *cells]) + "\n"


def jobs(only: str) -> list[Job]:
    """Return all runs of the certificate, the recommended settings first."""
    grid = [Job("cdpo", s, b, share, ()) for b in BETAS for share in SHARES for s in SEEDS]  # neighbours share no world
    others = [Job(name, s, ABLATION_BETA, ABLATION_SHARE, tuple(over)) for name, over in VARIANTS.items() for s in ABLATION_SEEDS]
    return [job for job in [*grid, *others] if only in ("", job.setting)]


def write(rows: list[dict[str, float | str | bool]], commits: set[str]) -> None:
    """Write docs/results/certificate.md."""
    grid, others = [r for r in rows if r["setting"] == "cdpo"], [r for r in rows if r["setting"] != "cdpo"]
    text = (ROOT / "benchmarks" / "certificate_head.md").read_text()
    text += f"\nRun at commit {', '.join(sorted(commits))}.\n"
    text += f"\n**{sum(bool(r['holds']) for r in grid)} of {len(grid)} runs meet all five bounds.**\n\n" + table(grid)
    text += "\n## The paper's own setting, and what happens without each part\n\n" + table(others)
    path = ROOT / "docs" / "results" / "certificate.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _start(job: Job, folder: Path) -> tuple[Job, dict[str, object]]:
    with (folder / f"{job.name}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        return job, one(job, folder)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("outputs/certificate"))
    parser.add_argument("--only", default="", help="one setting: cdpo, " + ", ".join(VARIANTS))
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows, commits = [], set()
    with ProcessPoolExecutor(args.jobs) as pool:
        todo = jobs(args.only)
        for job, metrics in pool.map(_start, todo, [folder] * len(todo)):
            rows.append(row(job, metrics))
            commits.add(str(metrics["run/git_commit"])[:7])
            print(json.dumps(rows[-1]), flush=True)
    if not args.only:
        write(rows, commits)


if __name__ == "__main__":
    main()
