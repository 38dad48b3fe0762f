"""Writes docs/results/methods.md and its figure from the results of `methods.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from certificate import ROOT

# Upper bounds that a method has to meet: KL to the optimum in nats, and |E[c] - C_limit| in cost units.
BOUNDS = {"cdpo": (0.03, 0.05), "cdpo_fixed": (0.03, None), "pd_dpo_complete": (0.05, 0.06), "ppo_lag": (0.15, 0.08)}
COLUMNS = (
    "KL to optimum",
    "E[c] - C_limit",
    "E[r]",
    "support",
    "trained tokens",
    "sampled tokens",
    "scorer forwards",
    "models",
    "s",
)
Row = dict[str, float]
Runs = dict[int, dict[str, Row]]  # by seed and method


def mean(values: list[float]) -> float:
    """Return the mean of the values; nan if one is missing (nan)."""
    return sum(values) / len(values)


def by_method(runs: Runs) -> dict[str, list[Row]]:
    """Return the rows of each method over the seeds, the nearest to the optimum first."""
    every: dict[str, list[Row]] = {}
    for _, result in sorted(runs.items()):
        for who, row in result.items():
            every.setdefault(who, []).append(row)
    return dict(sorted(every.items(), key=lambda item: mean([row["KL to optimum"] for row in item[1]])))


def _cell(name: str, values: list[float]) -> str:
    if mean(values) != mean(values):
        return "–"
    if name in ("trained tokens", "sampled tokens", "scorer forwards"):
        return f"{mean(values):,.0f}"
    if name in ("models", "s"):
        return f"{mean(values):.0f}"
    spread = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 and name != "support" else ""
    return f"{mean(values):.3f}{spread}"


def table(runs: Runs) -> str:
    """Return a table of means over the seeds, with the smallest and the largest value, in Markdown."""
    from cdpo_lightning.report.formatting import name_of

    lines = [["method", *COLUMNS], ["---", *["---:"] * len(COLUMNS)]]
    for who, result in by_method(runs).items():
        lines.append([name_of(who), *(_cell(name, [row[name] for row in result]) for name in COLUMNS)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def bounds(runs: Runs) -> str:
    """Return how many seeds meet the bounds of each method, as a list in Markdown."""
    from cdpo_lightning.report.formatting import name_of

    lines = []
    for who, (kl, cost) in BOUNDS.items():
        own = [result[who] for result in runs.values() if who in result]
        met = sum(r["KL to optimum"] <= kl and (cost is None or abs(r["E[c] - C_limit"]) <= cost) for r in own)
        bound = f"KL <= {kl}" + (f" and |E[c] - C_limit| <= {cost}" if cost else "")
        lines.append(f"* {name_of(who)}, {bound}: {met} of {len(own)} seeds.")
    pairs = [(f["o_pd_dpo"], f["pd_dpo"]) for f in runs.values() if {"o_pd_dpo", "pd_dpo"} <= set(f)]
    met = sum(o["KL to optimum"] <= p["KL to optimum"] / 2 and abs(o["E[c] - C_limit"]) <= 0.1 for o, p in pairs)
    lines.append(f"* O-PD-DPO, at most half of PD-DPO's KL and |E[c] - C_limit| <= 0.1: {met} of {len(pairs)} seeds.")
    return "\n".join(lines) + "\n"


def paired(runs: Runs) -> str:
    """Return a table of PD-DPO's distance less O-PD-DPO's, seed by seed, with a 95 % t interval of the mean."""
    import torch

    from cdpo_lightning.maths.statistics import clustered_mean

    both = {seed: (f["pd_dpo"]["KL to optimum"], f["o_pd_dpo"]["KL to optimum"]) for seed, f in sorted(runs.items())}
    lines = ["| seed | PD-DPO | O-PD-DPO | difference |", "| ---: | ---: | ---: | ---: |"]
    lines += [f"| {seed} | {p:.3f} | {o:.3f} | {p - o:.3f} |" for seed, (p, o) in both.items()]
    difference = torch.tensor([p - o for p, o in both.values()], dtype=torch.float64)
    result = clustered_mean(difference, torch.arange(len(difference)))
    interval = f", 95 % interval [{result.low:.3f}, {result.high:.3f}] (paired t, {len(both)} seeds)" if len(both) > 1 else ""
    return "\n".join(lines) + f"\n\nMean difference {result.mean:.3f} nats{interval}.\n"


def figure(runs: Runs, path: Path) -> None:
    """Draw the distance to the optimum against sampled and trained tokens: a point per seed, and the named mean of each method."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from cdpo_lightning.report.figures.labels import Label, point_labels
    from cdpo_lightning.report.figures.style import STYLE, colour_of, text_colour
    from cdpo_lightning.report.formatting import name_of

    with plt.rc_context(STYLE):
        drawn, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
        for axes, budget in zip(panels, ("sampled tokens", "trained tokens"), strict=True):
            labels = []
            for who, result in by_method(runs).items():
                known = [(row[budget], row["KL to optimum"]) for row in result if row[budget] == row[budget]]
                if not known:
                    continue
                x, y = (mean(list(values)) for values in zip(*known, strict=True))
                axes.plot(*zip(*known, strict=True), "o", ms=3, alpha=0.5, color=colour_of(who))
                axes.plot(x, y, "o", ms=8, color=colour_of(who))
                labels.append(Label(x, y, name_of(who), text_colour(who)))
            axes.set_yscale("log")
            axes.set_xscale("symlog", linthresh=1e4)
            axes.set_xlim(-1500, 2 * max(row[budget] for result in runs.values() for row in result.values()))
            axes.set_xlabel(f"{budget} (linear to 10,000, then logarithmic)")
            drawn.canvas.draw()
            point_labels(axes, labels)
        panels[0].set_ylabel("KL to the exact optimum, nats")
        panels[0].set_title("Distance against tokens sampled")
        panels[1].set_title("Distance against tokens trained on")
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=110)
        plt.close(drawn)


def write(result: Mapping[str, Runs], withheld: float) -> None:
    """Write docs/results/methods.md and its figure; `withheld` is the share of the responses that are in no pair."""
    text = (ROOT / "benchmarks" / "methods_head.md").read_text()
    seeds = ", ".join(str(seed) for seed in sorted(result["all"]))
    text += f"\nSeeds with a run: {seeds}.\n\n" + table(result["all"]) + "\n## The bounds\n\n" + bounds(result["all"])
    text += "\n![Distance against tokens](../images/methods.png)\n"
    if result["withheld"]:
        text += (
            f"\n## Pairs that do not cover the optimum\n\nThe best {withheld:.0%} of each prompt's responses, by true reward less"
        )
        text += " cost, are in no pair.\nKL to the optimum, nats:\n\n" + paired(result["withheld"])
    path = ROOT / "docs" / "results" / "methods.md"
    path.write_text(text)
    figure(result["all"], ROOT / "docs" / "images" / "methods.png")
