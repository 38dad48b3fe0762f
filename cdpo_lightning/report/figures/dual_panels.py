"""Draws the two panels of the dual rounds: lambda, and the expected cost."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cdpo_lightning.report.figures.labels import Label
from cdpo_lightning.report.figures.style import INK, VERMILLION, colour_of, readable, text_colour, with_minus_sign
from cdpo_lightning.report.figures.titles import cost_title, lambda_title
from cdpo_lightning.report.formatting import finite, implied_limit, name_of, telling, trained_method
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.run.verdict import unreachable

MANY_ROUNDS = 40  # with more rounds no markers are drawn
MANY_METHODS = 4  # with more methods only those whose lambda changes are drawn; the others are in the reward-cost figure
Rounds = Sequence[Mapping]


def dual_loops(run: Run) -> dict[str, list[Mapping]]:
    """Return the dual rounds of each method, the run's own method first.

    Left out are first stages (`pd_dpo_reward`), whose policy is not evaluated, and with more than `MANY_METHODS` methods those
    whose lambda does not change.
    """
    main = trained_method(run.metrics)
    loops: dict[str, list[Mapping]] = {}
    for row in run.rounds:
        loops.setdefault(row.get("who", main), []).append(row)
    evaluated = {method: rounds for method, rounds in loops.items() if finite(run.metrics, f"eval/{method}/cost_mean") is not None}
    loops = evaluated or loops
    if len(loops) > MANY_METHODS:
        loops = {method: rounds for method, rounds in loops.items() if method == main or len(set(_lambda_path(rounds)[1])) > 1}
    return dict(sorted(loops.items(), key=lambda item: item[0] != main))


def series(rounds: Rounds, key: str) -> tuple[list[float], list[float]]:
    """Return (round numbers, values) of the rounds where the value is a finite number."""
    points = [(row["round"], value) for row in rounds if (value := finite(row, key)) is not None]
    return [number for number, _ in points], [value for _, value in points]


def draw_lambda(axes: Axes, run: Run) -> list[Label]:
    """Draw the lambda of each round, the lambda after the last update as an open circle, and lambda* as a dashed line.

    Returns: labels for the right margin.
    """
    loops, labels = dual_loops(run), []
    for method, rounds in loops.items():
        numbers, lam = _lambda_path(rounds)
        labels += _line(axes, method, numbers, lam, named=len(loops) > 1)
        if lam and finite(rounds[-1], "dual/lambda_next") is not None:
            axes.plot(numbers[-1:], lam[-1:], "o", ms=5, mfc="white", mec=colour_of(method), zorder=4)
    labels += _exact_line(axes, run, "exact/lambda", "exact λ* ")
    axes.set_ylabel("λ (reward per cost)")
    axes.set_title(_title_prefix(loops) + lambda_title(run.metrics, _lambda_path(next(iter(loops.values()), []))[1]))
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    return labels


def _title_prefix(loops: Mapping[str, Rounds]) -> str:
    return f"{name_of(next(iter(loops)))}: " if len(loops) > 1 else ""


def _lambda_path(rounds: Rounds) -> tuple[list[float], list[float]]:
    numbers, lam = series(rounds, "dual/lambda")
    after = finite(rounds[-1], "dual/lambda_next") if rounds else None
    return (numbers, lam) if after is None else ([*numbers, rounds[-1]["round"] + 1], [*lam, after])


def _line(axes: Axes, method: str, numbers: Sequence[float], values: Sequence[float], named: bool) -> list[Label]:
    marker = "o" if len(numbers) <= MANY_ROUNDS else ""
    axes.plot(numbers, values, marker=marker, ms=4, lw=1.8, color=colour_of(method), label=method, zorder=3)
    return [Label(0, values[-1], name_of(method), text_colour(method))] if named and values else []


def _exact_line(axes: Axes, run: Run, key: str, text: str) -> list[Label]:
    if (exact := finite(run.metrics, key)) is None or unreachable(run.metrics):
        return []
    axes.axhline(exact, ls="--", lw=1.3, color=INK, zorder=2)
    return [Label(0, exact, text + with_minus_sign(telling(exact)), INK)]


def draw_cost(axes: Axes, run: Run) -> list[Label]:
    """Draw E[c] by round with its 95 % band and C_limit, with the infeasible side shaded.

    Returns: labels for the right margin.
    """
    loops, labels = dual_loops(run), []
    for method, rounds in loops.items():
        labels += _line(axes, method, *series(rounds, "dual/expected_cost"), named=len(loops) > 1)
        _band(axes, method, rounds)
    axes.margins(y=0.12)
    labels += _limit_line(axes, run)
    labels += _exact_line(axes, run, "exact/expected_cost", "exact ")
    axes.set_ylabel("E[cost] (cost units)")
    axes.set_xlabel("dual round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(_title_prefix(loops) + _cost_title(run, next(iter(loops.values()), [])))
    return labels


def _band(axes: Axes, method: str, rounds: Rounds) -> None:
    mean, error = ("dual/expected_cost", "dual/expected_cost_se")
    known = [row for row in rounds if finite(row, mean) is not None and finite(row, error) is not None]
    numbers, cost = series(known, mean)
    half = 1.96 * np.array(series(known, error)[1])
    axes.fill_between(numbers, np.array(cost) - half, np.array(cost) + half, color=colour_of(method), alpha=0.2, lw=0, zorder=2)


def _limit_line(axes: Axes, run: Run) -> list[Label]:
    if (limit := c_limit(run)) is None:
        return []
    axes.axhline(limit, lw=1.3, color=VERMILLION, zorder=2)
    top = max(axes.get_ylim()[1], limit)
    axes.axhspan(limit, top + abs(top - limit), color=VERMILLION, alpha=0.07, lw=0, zorder=0)
    axes.set_ylim(top=top)
    axes.annotate("infeasible", (1, 1), (-6, -6), **corner_style("right", "top"), color=readable(VERMILLION))
    return [limit_label(0, limit, limit, readable(VERMILLION))]


def limit_label(x: float, y: float, limit: float, colour: str) -> Label:
    """Return the label of the line at C_limit."""
    return Label(x, y, f"limit {with_minus_sign(telling(limit))}", colour)


def corner_style(ha: str, va: str) -> dict:
    """Return the arguments of `annotate` for a text in a corner of the axes."""
    return {"xycoords": "axes fraction", "textcoords": "offset points", "ha": ha, "va": va, "fontsize": 8.5}


def c_limit(run: Run) -> float | None:
    """Return C_limit from the metrics, else from the last round: E[c] minus the violation; None without either."""
    limit = finite(run.metrics, "dual/c_limit")
    return implied_limit(run.rounds[-1]) if limit is None and run.rounds else limit


def _cost_title(run: Run, rounds: Rounds) -> str:
    last: Mapping = next((row for row in reversed(rounds) if finite(row, "dual/expected_cost") is not None), {})
    error = finite(last, "dual/expected_cost_se")
    return cost_title(finite(last, "dual/expected_cost"), None if error is None else 1.96 * error, c_limit(run))
