"""A synthetic folder of a finished run in the closed-form world, with sixteen dual rounds."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo_lightning.report import Run, build, load_run

C_LIMIT = -0.3
# policy: E[reward], E[cost], feasible, KL to the optimum. SFT trains nothing, so it has the values of the reference.
MEASURED = {
    "reference": (0.0, 0.05, "no", 0.8),
    "sft": (0.0, 0.05, "no", 0.8),
    "dpo": (1.1, 0.6, "no", 1.9),
    "cdpo": (0.7, -0.29, "undecided", 0.0085),
}


def _metrics() -> dict:
    metrics = {
        "run/seed": 42,
        "run/command": "python run.py +experiment=closed_form",
        "dual/c_limit": C_LIMIT,
        "dual/lambda": 1.17,
        "dual/alarm": "none",
        "exact/lambda": 1.161,
        "exact/expected_cost": -0.3,
        "exact/expected_reward": 0.71,
        "exact/reachable_cost_min": -2.1,
    }
    for who, (reward, cost, feasible, distance) in MEASURED.items():
        metrics |= {
            f"eval/{who}/reward_mean": reward,
            f"eval/{who}/reward_ci_low": reward - 0.05,
            f"eval/{who}/reward_ci_high": reward + 0.05,
            f"eval/{who}/cost_mean": cost,
            f"eval/{who}/cost_ci_low": cost - 0.04,
            f"eval/{who}/cost_ci_high": cost + 0.04,
            f"eval/{who}/cost_std": 0.9,
            f"eval/{who}/unsafe_rate": 0.333,
            f"eval/{who}/cost_cvar_90": cost + 1.6,
            f"eval/{who}/feasible": feasible,
            f"eval/{who}/kl_to_reference": 0.1 / 3,
            f"eval/{who}/prompts": 200,
            f"eval/{who}/samples": 1600,
            f"exact/{who}/expected_cost": cost + 0.004,
            f"exact/{who}/kl_to_optimum": distance,
            f"exact/{who}/support_mass": 0.998,
        }
    return metrics


def _write_history(path: Path) -> None:
    rows: list[dict] = [{"stage": "sft", "who": "sft", "epoch": 0, "step": 1, "loss": 2.3}]
    lam = 0.0
    for number in range(1, 17):
        after, cost = 1.17 * (1 - math.exp(-number / 2)), C_LIMIT + math.exp(-number / 3)
        rows.append(
            {"stage": "policy", "who": "cdpo", "epoch": number - 1, "step": 10 * number, "round": number}
            | {
                "dual/lambda": lam,
                "dual/lambda_next": after,
                "dual/expected_cost": cost,
                "dual/violation": cost - C_LIMIT,
            }
            | {"dual/expected_cost_se": 0.02, "dual/label_flips": 0.021, "dual/effective_sample_size": 0.78}
        )
        lam = after
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_run(folder: Path, **parts: str) -> Path:
    """Write every file of a run; `parts` (`metrics_json="..."`) replace the content of a file, "" removes it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_history(folder / "history.csv")
    samples = [
        {"prompt": prompt, "response": f"{who} says", "who": who, "reward": 0.5, "cost": cost}
        for prompt in ("How?", "Why?")
        for who, cost in (("cdpo", -0.4), ("dpo", 0.7))
    ]
    (folder / "metrics.json").write_text(json.dumps(_metrics()), encoding="utf-8")
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)) + "\n", encoding="utf-8")
    (folder / "frontier.csv").write_text("lambda,expected_cost,expected_reward\n1,-0.3,0.7\n0,0.6,1.1\n", encoding="utf-8")
    (folder / "config.yaml").write_text("constraint:\n  c_limit: -0.3  # cost units\n", encoding="utf-8")
    for name, text in parts.items():
        path = folder / ".".join(name.rsplit("_", 1))
        path.unlink() if text == "" else path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def metrics() -> dict:
    return _metrics()


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(write_run(tmp_path / "demo" / "12-00"))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, built once for all tests that only read it."""
    folder = write_run(tmp_path_factory.mktemp("outputs") / "demo" / "12-00")
    build(folder)
    return folder
