"""Writes labels in place of legends: in the right margin next to a line, or next to points, without overlap."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import cos, hypot, pi, sin

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

SIZE = 9.0  # points, as all lengths here
LINE_HEIGHT = 1.3 * SIZE
DIRECTIONS = tuple((cos(step * pi / 8), sin(step * pi / 8)) for step in range(16))
DISTANCES = (4, 10, 20, 34, 52)
LEADER = 13  # a label at a larger distance from its marker is connected to it by a line
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Label:
    """The label of a point in data coordinates; `reach` is the radius of its marker."""

    x: float
    y: float
    text: str
    colour: str
    reach: float = 5.0


def margin_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Write the labels to the right of the axes at their heights; labels that would overlap are moved up or down."""
    ordered = sorted(labels, key=lambda label: label.y)
    heights = [_position(axes, label)[1] for label in ordered]
    style = {"textcoords": "offset points", "va": "center", "fontsize": SIZE, "annotation_clip": False}
    for label, height, moved in zip(ordered, heights, _spread(heights, LINE_HEIGHT), strict=True):
        where = {"xy": (1, label.y), "xycoords": axes.get_yaxis_transform(), "xytext": (6, moved - height)}
        axes.annotate(label.text, color=label.colour, **where, **style)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return the ascending heights, moved to be at least `gap` from one another; a moved group keeps its mean height."""
    clusters: list[tuple[float, int]] = []  # (centre, size)
    for height in heights:
        clusters.append((height, 1))
        while len(clusters) > 1 and clusters[-1][0] - clusters[-2][0] < gap * (clusters[-1][1] + clusters[-2][1]) / 2:
            (centre, size), (below, count) = clusters.pop(), clusters.pop()
            clusters.append(((centre * size + below * count) / (size + count), size + count))
    return [centre + gap * (step - (size - 1) / 2) for centre, size in clusters for step in range(size)]


def point_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[Box] = ()) -> None:
    """Write each label next to its point, so that it covers no point, no obstacle and no other label if possible.

    Labels are placed greedily, in the order given. The figure must have its final layout; `obstacles` are boxes in points.
    """
    markers = [_box(*_position(axes, label), 2 * label.reach, 2 * label.reach) for label in labels]
    written: list[Box] = []
    for own, label in enumerate(labels):
        others = [*written, *markers[:own], *markers[own + 1 :]]
        offset, box = _best(axes, label, np.array([*obstacles, *markers, *written]), np.array(others).reshape(-1, 4))
        written.append(box)
        _write(axes, label, offset)


def _best(axes: Axes, label: Label, taken: np.ndarray, others: np.ndarray) -> tuple[tuple[float, float], Box]:
    """Return (offset, box) of the candidate position with the lowest cost: overlap, lines across others, distance."""
    at, extent = _position(axes, label), _extent(axes, label.text)
    offsets = [_offset(right, up, far + label.reach, extent) for far, (right, up) in product(DISTANCES, DIRECTIONS)]
    boxes = [_box(at[0] + right, at[1] + up, *extent) for right, up in offsets]
    costs = [
        _covered(axes, box, taken) + 10 * _crossed(at, offset, others) + hypot(*offset)
        for offset, box in zip(offsets, boxes, strict=True)
    ]
    chosen = int(np.argmin(costs))
    return offsets[chosen], boxes[chosen]


def _offset(right: float, up: float, far: float, extent: tuple[float, float]) -> tuple[float, float]:
    # To the text's centre: the text's nearest edge is `far` from its point, to the side as well as above.
    return right * (far + extent[0] / 2), up * (far + extent[1] / 2)


def _covered(axes: Axes, box: Box, taken: np.ndarray) -> float:
    frame = np.array([axes.bbox.extents]) * 72 / axes.figure.dpi
    outside = (box[2] - box[0]) * (box[3] - box[1]) - _shared(box, frame)
    return 6 * _shared(box, taken) + 20 * outside


def _shared(box: Box, others: np.ndarray) -> float:
    """Return the area in square points that the box shares with the others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return float(np.prod(np.clip(high - low, 0, None), axis=1).sum())


def _crossed(start: tuple[float, float], offset: tuple[float, float], others: np.ndarray) -> int:
    """Return how many steps of 2 points on the line from the point to its text lie in another text or marker."""
    line = np.array(start) + np.outer(np.linspace(0, 1, int(hypot(*offset) / 2)), offset)
    inside = (line[:, None] >= others[None, :, :2]) & (line[:, None] <= others[None, :, 2:])
    return int(inside.all(axis=2).sum())


def _position(axes: Axes, label: Label) -> tuple[float, float]:
    """Return the position of the label's point in the figure, in points."""
    x, y = axes.transData.transform((label.x, label.y)) * 72 / axes.figure.dpi
    return float(x), float(y)


def _extent(axes: Axes, text: str) -> tuple[float, float]:
    probe = axes.text(0, 0, text, fontsize=SIZE)
    box = probe.get_window_extent(axes.figure.canvas.get_renderer())
    probe.remove()
    return box.width * 72 / axes.figure.dpi + 3, box.height * 72 / axes.figure.dpi + 2


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _write(axes: Axes, label: Label, offset: tuple[float, float]) -> None:
    width, height = _extent(axes, label.text)
    gap = hypot(max(abs(offset[0]) - width / 2, 0), max(abs(offset[1]) - height / 2, 0)) - label.reach
    back = {"arrowstyle": "-", "color": label.colour, "lw": 0.7, "shrinkA": 1, "shrinkB": label.reach}
    style = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": SIZE, "zorder": 6}
    arrow = back if gap > LEADER else None
    text = axes.annotate(label.text, (label.x, label.y), offset, color=label.colour, arrowprops=arrow, **style)
    text.set_path_effects([withStroke(linewidth=2.5, foreground="white", alpha=0.85)])
    text.set_in_layout(False)


def wrap_title(axes: Axes) -> None:
    """Wrap the title of the axes into the fewest lines, of about equal length, that fit their width."""
    title, renderer = axes.get_title(loc="left"), axes.figure.canvas.get_renderer()
    for lines in range(1, 5):
        # textwrap keeps no-break spaces, so a number stays on the line of its word
        length = next(n for n in range(len(title) // lines, len(title) + 1) if len(textwrap.wrap(title, n)) <= lines)
        if axes.set_title(textwrap.fill(title, length)).get_window_extent(renderer).width <= axes.bbox.width:
            return
