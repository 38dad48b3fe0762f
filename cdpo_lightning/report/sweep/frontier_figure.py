"""Draws the figure of a sweep: reward against cost with intervals, and the exact frontiers and optima if known."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cdpo_lightning.config.methods import REFERENCE
from cdpo_lightning.report.figures.style import GREEN, INK, QUIET, STYLE, VERMILLION
from cdpo_lightning.report.formatting import name_of
from cdpo_lightning.report.sweep.load import Point, Sweep
from cdpo_lightning.report.sweep.page_data import exact_frontiers

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8a6d00")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p")
MANY = 60  # with more points no intervals are drawn
DPI = 160


def frontier_png(sweep: Sweep) -> bytes:
    """Return the PNG of E[reward] against E[cost], with one colour and marker for each method and beta."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure((8.2, 5.6), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.subplots(), sweep)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def _draw(axes: Axes, sweep: Sweep) -> None:
    groups: dict[tuple[str, object], list[Point]] = {}
    for point in sweep.points:
        if point["main"]:
            groups.setdefault((point["who"], sweep.value(point["run"], "policy.beta")), []).append(point)
    colours = dict(zip(groups, cycle(zip(PALETTE, SHAPES, strict=True)), strict=False))
    for group, points in groups.items():
        _group(axes, group, points, *colours[group])
    _baselines(axes, sweep)
    axes.margins(0.1)
    axes.autoscale_view()
    _limits(axes, sweep)
    _exact(axes, sweep, {group[1]: colour for group, (colour, _) in colours.items()})
    axes.set_xlabel("E[cost] (cost units; lower is safer)")
    axes.set_ylabel("E[reward] (reward units)")
    axes.set_title("Reward against cost, 95 % intervals clustered by prompt")
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _group(axes: Axes, group: tuple[str, object], points: Sequence[Point], colour: str, shape: str) -> None:
    ordered = sorted(points, key=lambda point: point["cost"][0])
    cost, reward = ([point[kind][0] for point in ordered] for kind in ("cost", "reward"))
    bars = {} if len(ordered) > MANY else {"xerr": _spans(ordered, "cost"), "yerr": _spans(ordered, "reward")}
    name = name_of(group[0]).replace("lambda", "λ") + ("" if group[1] is None else f", β {group[1]}")
    axes.errorbar(
        cost, reward, fmt=shape + "-", ms=6, lw=0.9, elinewidth=1, color=colour, mec="white", label=name, zorder=4, **bars
    )


def _spans(points: Sequence[Point], kind: str) -> list[list[float]]:
    ends = [[point[kind][0] if end is None else end for end in point[kind]] for point in points]
    return [[max(mean - low, 0) for mean, low, _ in ends], [max(high - mean, 0) for mean, _, high in ends]]


def _baselines(axes: Axes, sweep: Sweep) -> None:
    others = [point for point in sweep.points if not point["main"]]
    for policy in sorted({point["who"] for point in others}):
        means = {(point["cost"][0], point["reward"][0]) for point in others if point["who"] == policy}
        cost, reward = zip(*sorted(means), strict=True)
        marker = "+" if policy == REFERENCE else "x"
        axes.plot(cost, reward, marker, ms=7, color=QUIET, label=name_of(policy), ls="", zorder=3)


def _limits(axes: Axes, sweep: Sweep) -> None:
    limits = sorted(
        {limit for at in range(len(sweep.runs)) if isinstance(limit := sweep.value(at, "constraint.c_limit"), (int, float))}
    )
    if not limits:
        return
    left, right = axes.get_xlim()
    right = max(right, limits[-1] + 0.1 * (right - left))
    axes.axvspan(limits[-1], right, color=VERMILLION, alpha=0.07, lw=0, zorder=0)
    for limit in limits if len(limits) <= 12 else limits[-1:]:
        axes.axvline(limit, lw=0.9, ls=":", color=GREEN, zorder=1)
    axes.annotate("above the limit" if len(limits) == 1 else "above every limit", (limits[-1], axes.get_ylim()[1]), (4, -10),
                  textcoords="offset points", fontsize=8, color=VERMILLION)  # fmt: skip
    axes.set_xlim(left, right)


def _exact(axes: Axes, sweep: Sweep, colours: dict[object, str]) -> None:
    for exact in exact_frontiers(sweep):
        _, cost, reward = zip(*exact["points"], strict=True)
        axes.plot(cost, reward, lw=1.1, ls="--", color=colours.get(exact["beta"], QUIET), zorder=2, scalex=False, scaley=False)
    optima = {tuple(run.metrics.get(f"exact/expected_{kind}") for kind in ("cost", "reward")) for run in sweep.runs}
    known = [(cost, reward) for cost, reward in optima if isinstance(cost, float) and isinstance(reward, float)]
    if known:
        cost, reward = zip(*known, strict=True)
        style = {"ms": 11, "mfc": "none", "mec": INK, "mew": 0.8, "zorder": 5, "label": "exact optimum"}
        axes.plot(cost, reward, "*", scalex=False, scaley=False, **style)
