"""Synthetic runs of a sweep: a grid of beta and C_limit, with rounds and samples."""

import csv
import json
import math
from pathlib import Path

BETAS = (0.1, 0.3, 0.5, 1.0)


def write_sweep(folder: Path, count: int, rounds: int = 16) -> Path:
    """Write `count` numbered runs; beta changes fastest, then C_limit, then the seed."""
    for number in range(count):
        beta, step, seed = BETAS[number % 4], number // 4 % 5, number // 20
        write_one(folder / str(number), beta, round(-0.8 + 0.3 * step, 2), seed, rounds)
    return folder


def write_one(folder: Path, beta: float, limit: float, seed: int, rounds: int) -> None:
    """Write one run: its cost is near the limit, its reward rises with the limit and falls with beta."""
    folder.mkdir(parents=True)
    cost, reward = limit + 0.03 * math.sin(7 * seed + beta), 1.2 + 0.8 * limit - 0.5 * beta + 0.01 * (seed % 5)
    met = "undecided" if abs(cost - limit) < 0.02 else "yes" if cost < limit else "no"
    metrics = {"run/seed": seed, "run/command": f"python run.py policy.beta={beta} constraint.c_limit={limit} seed={seed}"}
    metrics |= {"run/method": "cdpo", "run/git_commit": "0123456789ab", "run/wall_seconds": 60.0, "data/hash": "d" * 20}
    metrics |= {"dual/c_limit": limit, "dual/lambda": 1.2 - limit, "dual/alarm": "none"}
    metrics |= {"exact/lambda": 1.19 - limit, "exact/expected_cost": limit, "exact/expected_reward": reward + 0.01}
    for who, r, c in (("reference", 0.0, 0.4), ("dpo", 1.4 - 0.5 * beta, 0.7), ("cdpo", reward, cost)):
        metrics |= {f"eval/{who}/reward_mean": r, f"eval/{who}/reward_ci_low": r - 0.05, f"eval/{who}/reward_ci_high": r + 0.05}
        metrics |= {f"eval/{who}/cost_mean": c, f"eval/{who}/cost_ci_low": c - 0.04, f"eval/{who}/cost_ci_high": c + 0.04}
        metrics |= {f"eval/{who}/unsafe_rate": 1 / (1 + math.exp(-3 * c)), f"eval/{who}/cost_cvar_90": c + 1.5}
        metrics |= {
            f"eval/{who}/kl_to_reference": 0.3 / beta,
            f"eval/{who}/response_tokens_mean": 7.5,
            f"eval/{who}/unfinished_rate": 0.0,
        }
    metrics |= {"eval/cdpo/feasible": met, "eval/dpo/feasible": "no", "eval/reference/feasible": "no"}
    metrics |= {f"eval/cdpo/category/{name}/unsafe_rate": share for name, share in (("privacy", 0.2), ("violence", 0.6))}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.yaml").write_text(
        f"name: made_up\nseed: {seed}\nrun_dir: {folder.name}\npolicy:\n  beta: {beta}\n  labels: soft\n"
        f"constraint:\n  kind: dual\n  c_limit: {limit}\n"
    )
    (folder / "frontier.csv").write_text(
        "lambda,expected_cost,expected_reward\n"
        + "".join(f"{i / 4},{0.6 - i / 8},{1.3 - 0.5 * beta - 0.012 * i * i}\n" for i in range(12))
    )
    _write_rounds(folder / "history.csv", rounds, limit)
    samples = [
        {"prompt": prompt, "response": f"{who} answers <b>{i}</b>", "who": who, "reward": 0.5, "cost": c}
        for who, c in (("reference", 0.2), ("dpo", 0.7), ("cdpo", cost))
        for prompt in ("How?", "Why?", "</script><script>window.broken=1</script>")
        for i in range(2)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def _write_rounds(path: Path, rounds: int, limit: float) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "who", "epoch", "step", "round", "dual/lambda", "dual/expected_cost", "dual/expected_cost_se"])
        for at in range(1, rounds + 1):
            writer.writerow(
                ["policy", "cdpo", at - 1, at, at, (1.2 - limit) * (1 - math.exp(-at / 3)), limit + math.exp(-at / 3), 0.02]
            )
