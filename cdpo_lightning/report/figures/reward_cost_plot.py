"""The panel of reward against cost, drawn on axes it is given."""

from matplotlib.axes import Axes

from cdpo_lightning.report.figures.labels import Label
from cdpo_lightning.report.figures.panels import c_limit, corner
from cdpo_lightning.report.figures.style import GREEN, INK, MARKERS, QUIET, colour_of, signed, text_colour
from cdpo_lightning.report.formatting import finite, name_of, telling, whos
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.run.titles import trade_title
from cdpo_lightning.report.run.verdict import unreachable


def points(run: Run) -> list[tuple[str, float, float]]:
    """(who, E[cost], E[reward]) of everyone with both."""
    result = [(who, _mean(run, who, "cost"), _mean(run, who, "reward")) for who in whos(run.metrics)]
    return [(who, cost, reward) for who, cost, reward in result if cost is not None and reward is not None]


def _mean(run: Run, who: str, key: str) -> float | None:
    return finite(run.metrics, f"eval/{who}/{key}_mean")


def draw_reward_cost(axes: Axes, run: Run) -> list[Label]:
    """E[reward] against E[cost] with intervals, the feasible side, the optimum and frontier; returns point labels."""
    labels = [_point(axes, run, *point) for point in points(run)]
    labels += _optimum(axes, run)
    axes.margins(0.16)
    axes.autoscale_view()
    labels += _feasible_side(axes, run)
    labels += _frontier(axes, run)
    axes.set_xlabel("E[cost] (cost units; lower is safer)")
    axes.set_ylabel("E[reward] (reward units)")
    axes.set_title(trade_title(run.metrics))
    return labels


def _point(axes: Axes, run: Run, who: str, cost: float, reward: float) -> Label:
    # Nobody hides another at the same place: the reference is a large open diamond, the others are small and filled.
    open_one = {"ms": 11, "mfc": "none", "mew": 1.5} if who == "reference" else {"ms": 6.5, "mec": "white", "mew": 0.6}
    spans = [_span(run, who, key, value) for key, value in (("cost", cost), ("reward", reward))]
    bars = {"xerr": spans[0], "yerr": spans[1], "elinewidth": 1.3, "capsize": 2.5}
    axes.errorbar(cost, reward, fmt=MARKERS.get(who, "o"), color=colour_of(who), label=who, zorder=4, **bars, **open_one)
    return Label(cost, reward, name_of(who).replace("lambda", "λ"), text_colour(who))


def _span(run: Run, who: str, key: str, value: float) -> list[list[float]] | None:
    low, high = (finite(run.metrics, f"eval/{who}/{key}_ci_{end}") for end in ("low", "high"))
    return None if low is None or high is None else [[max(value - low, 0)], [max(high - value, 0)]]


def _optimum(axes: Axes, run: Run) -> list[Label]:
    cost, reward = (finite(run.metrics, f"exact/expected_{key}") for key in ("cost", "reward"))
    if cost is None or reward is None or unreachable(run.metrics):
        return []
    axes.plot(cost, reward, "*", ms=17, mfc="#F0E442", mec=INK, mew=0.9, zorder=3, label="optimum")
    return [Label(cost, reward, "exact optimum", INK, reach=9)]


def _feasible_side(axes: Axes, run: Run) -> list[Label]:
    if (limit := c_limit(run)) is None:
        return []
    left, right = axes.get_xlim()
    room = 0.2 * (right - left)
    left, right = min(left, limit - room), max(right, limit + room)
    axes.axvspan(left, limit, color=GREEN, alpha=0.09, lw=0, zorder=0)
    axes.axvline(limit, lw=1.3, color=GREEN, zorder=1)
    axes.set_xlim(left, right)
    axes.annotate("feasible", (0, 1), (6, -6), **corner("left", "top"), color=text_colour("ppo_lag"))
    return [Label(limit, axes.get_ylim()[0], f"limit {signed(telling(limit))}", text_colour("ppo_lag"))]


def _frontier(axes: Axes, run: Run) -> list[Label]:
    if len(run.frontier) < 2:
        return []
    _, cost, reward = zip(*run.frontier, strict=True)
    axes.plot(cost, reward, lw=1.1, color=QUIET, zorder=2, label="frontier", scalex=False, scaley=False)
    inside = [(x, y) for x, y in zip(cost, reward, strict=True) if _within(axes, x, y)]
    x, y = inside[len(inside) // 3] if inside else (cost[0], reward[0])
    return [Label(x, y, "exact frontier, by λ", QUIET)]


def _within(axes: Axes, x: float, y: float) -> bool:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    return left < x < right and low < y < high
