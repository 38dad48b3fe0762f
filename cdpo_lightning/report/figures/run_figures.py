"""Makes the figures of one run as PNG: the dual rounds, reward against cost, and a wide one with both."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from cdpo_lightning.report.figures.dual_panels import draw_cost, draw_lambda
from cdpo_lightning.report.figures.labels import Box, margin_labels, point_labels, wrap_title
from cdpo_lightning.report.figures.reward_cost_panel import draw_reward_cost, mean_points
from cdpo_lightning.report.figures.style import STYLE
from cdpo_lightning.report.load import Run

DPI = 160


@dataclass(frozen=True)
class Picture:
    """A PNG and its text alternative (`alt` in HTML)."""

    png: bytes
    alt: str


def pictures(run: Run) -> dict[str, Picture]:
    """Return the figures for which the run has results, by file name."""
    makers: dict[str, Callable[[Run], Figure]] = {}
    if run.rounds:
        makers["dual_rounds.png"] = dual_rounds
    if mean_points(run):
        makers["reward_cost.png"] = reward_cost
    if len(makers) == 2:
        makers["hero.png"] = hero
    return {name: _picture(make(run)) for name, make in makers.items()}


def dual_rounds(run: Run) -> Figure:
    """Return the figure of lambda and, below it, E[c], by dual round."""
    with _figure(7.6, 5.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        _draw_rounds(figure, upper, lower, run)
    return figure


def reward_cost(run: Run) -> Figure:
    """Return the figure of E[reward] against E[cost], each policy with its 95 % intervals."""
    with _figure(7.6, 5.2) as figure:
        _draw_reward_cost(figure, figure.subplots(), run)
    return figure


def hero(run: Run) -> Figure:
    """Return one wide figure with the dual rounds on the left and reward against cost on the right."""
    with _figure(11.0, 4.1) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1), wspace=0.02)
        upper, lower = left.subplots(2, 1, sharex=True)
        _draw_rounds(figure, upper, lower, run)
        _draw_reward_cost(figure, right.subplots(), run)
    return figure


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    # Our style over matplotlib's defaults, so that the user's matplotlibrc changes nothing; restored afterwards.
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure((width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _draw_rounds(figure: Figure, upper: Axes, lower: Axes, run: Run) -> None:
    above, below = draw_lambda(upper, run), draw_cost(lower, run)
    figure.draw_without_rendering()  # heights in pixels are known only after a layout
    margin_labels(upper, above)
    margin_labels(lower, below)


def _draw_reward_cost(figure: Figure, axes: Axes, run: Run) -> None:
    labels = draw_reward_cost(axes, run)
    figure.draw_without_rendering()
    wrap_title(axes)
    figure.draw_without_rendering()
    point_labels(axes, labels, _obstacles(axes))


def _obstacles(axes: Axes) -> list[Box]:
    """Return the boxes, in points, that a label should not cover: interval bars, texts, and curves in short pieces."""
    bars = [path for part in axes.containers for bar in part.lines[2] for path in bar.get_paths()]
    boxes = [axes.transData.transform_bbox(path.get_extents()) for path in bars]
    boxes += [text.get_window_extent() for text in axes.texts]
    for line in axes.lines:
        corners = line.get_transform().transform(line.get_xydata())
        boxes += [Bbox([np.minimum(*pair), np.maximum(*pair)]) for pair in pairwise(corners)]
    return [tuple(box.padded(3).extents * 72 / axes.figure.dpi) for box in boxes]


def _picture(figure: Figure) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    alt = "; ".join(axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes)
    return Picture(file.getvalue(), alt)
