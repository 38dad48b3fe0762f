"""Draws the panel of reward against cost."""

from matplotlib.axes import Axes

from cdpo_lightning.config.methods import presentation_of
from cdpo_lightning.report.figures.dual_panels import c_limit, corner_style, limit_label
from cdpo_lightning.report.figures.labels import Label
from cdpo_lightning.report.figures.style import GREEN, INK, QUIET, YELLOW, colour_of, readable, text_colour
from cdpo_lightning.report.figures.titles import reward_cost_title
from cdpo_lightning.report.formatting import evaluated_policies, finite, name_of
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.run.verdict import unreachable


def mean_points(run: Run) -> list[tuple[str, float, float]]:
    """Return (policy, E[cost], E[reward]) of every policy that has both."""
    points = [(policy, _mean(run, policy, "cost"), _mean(run, policy, "reward")) for policy in evaluated_policies(run.metrics)]
    return [(policy, cost, reward) for policy, cost, reward in points if cost is not None and reward is not None]


def _mean(run: Run, policy: str, key: str) -> float | None:
    return finite(run.metrics, f"eval/{policy}/{key}_mean")


def draw_reward_cost(axes: Axes, run: Run) -> list[Label]:
    """Draw E[reward] against E[cost] with intervals, the feasible side, the optimum and the frontier.

    Returns: labels for the points.
    """
    labels = [_point(axes, run, *point) for point in mean_points(run)]
    labels += _optimum(axes, run)
    axes.margins(0.16)
    axes.autoscale_view()
    labels += _feasible_side(axes, run)
    labels += _frontier(axes, run)
    axes.set_xlabel("E[cost] (cost units; lower is safer)")
    axes.set_ylabel("E[reward] (reward units)")
    axes.set_title(reward_cost_title(run.metrics))
    return labels


def _point(axes: Axes, run: Run, policy: str, cost: float, reward: float) -> Label:
    shown = presentation_of(policy)
    size = {"ms": 11, "mfc": "none", "mew": 1.5} if shown.hollow else {"ms": 6.5, "mec": "white", "mew": 0.6}
    xerr, yerr = (_interval(run, policy, key, value) for key, value in (("cost", cost), ("reward", reward)))
    bars = {"xerr": xerr, "yerr": yerr, "elinewidth": 1.3, "capsize": 2.5}
    axes.errorbar(cost, reward, fmt=shown.marker, color=colour_of(policy), label=policy, zorder=4, **bars, **size)
    return Label(cost, reward, name_of(policy).replace("lambda", "λ"), text_colour(policy))


def _interval(run: Run, policy: str, key: str, mean: float) -> list[list[float]] | None:
    """Return the lengths of the 95 % interval below and above the mean, in the form that `errorbar` takes."""
    low, high = (finite(run.metrics, f"eval/{policy}/{key}_ci_{end}") for end in ("low", "high"))
    return None if low is None or high is None else [[max(mean - low, 0)], [max(high - mean, 0)]]


def _optimum(axes: Axes, run: Run) -> list[Label]:
    cost, reward = (finite(run.metrics, f"exact/expected_{key}") for key in ("cost", "reward"))
    if cost is None or reward is None or unreachable(run.metrics):
        return []
    axes.plot(cost, reward, "*", ms=17, mfc=YELLOW, mec=INK, mew=0.9, zorder=3, label="optimum")
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
    axes.annotate("feasible", (0, 1), (6, -6), **corner_style("left", "top"), color=readable(GREEN))
    return [limit_label(limit, axes.get_ylim()[0], limit, readable(GREEN))]


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
