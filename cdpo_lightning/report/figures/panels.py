"""The two panels of the dual's rounds, each drawn on axes it is given: lambda, and the expected cost."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cdpo_lightning.report.figures.labels import Label
from cdpo_lightning.report.figures.style import INK, VERMILLION, colour_of, signed, text_colour
from cdpo_lightning.report.formatting import finite, main_who, name_of, telling
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.run.titles import cost_title, lambda_title
from cdpo_lightning.report.run.verdict import unreachable

MANY_ROUNDS = 40  # from here on a dot per round is clutter
MANY_METHODS = 4  # more than these, and only those whose lambda moves are drawn: the others stand in the plane of reward and cost


def loops(run: Run) -> dict[str, list[Mapping]]:
    """The rounds of each method's dual loop, the one the run is about first; of many methods, those whose lambda moves.

    A method's own first stage, which nobody judges, is left out.
    """
    main = main_who(run.metrics) or "cdpo"
    result: dict[str, list[Mapping]] = {}
    for row in run.rounds:
        result.setdefault(row.get("who", main), []).append(row)
    external_policies = {who: rounds for who, rounds in result.items() if finite(run.metrics, f"eval/{who}/cost_mean") is not None}
    result = external_policies or result
    if len(result) > MANY_METHODS:
        result = {who: rounds for who, rounds in result.items() if who == main or len(set(_lambda_path(rounds)[1])) > 1}
    return dict(sorted(result.items(), key=lambda item: item[0] != main))


def series(rounds: Sequence[Mapping], key: str) -> tuple[list[float], list[float]]:
    """(rounds, values) where the value is a finite number."""
    points = [(row["round"], value) for row in rounds if (value := finite(row, key)) is not None]
    return [at for at, _ in points], [value for _, value in points]


def draw_lambda(axes: Axes, run: Run) -> list[Label]:
    """lambda as used in each round, the last step's result as an open dot, lambda* dashed; returns margin labels."""
    result, labels = loops(run), []
    for who, rounds in result.items():
        at, lam = _lambda_path(rounds)
        labels += _line(axes, who, at, lam, named=len(result) > 1)
        if lam and finite(rounds[-1], "dual/lambda_next") is not None:
            axes.plot(at[-1:], lam[-1:], "o", ms=5, mfc="white", mec=colour_of(who), zorder=4)
    if (exact := finite(run.metrics, "exact/lambda")) is not None and not unreachable(run.metrics):
        axes.axhline(exact, ls="--", lw=1.3, color=INK, zorder=2)
        labels.append(Label(0, exact, f"exact λ* {telling(exact)}", INK))
    axes.set_ylabel("λ (reward per cost)")
    axes.set_title(_whose(result) + lambda_title(run.metrics, _lambda_path(next(iter(result.values()), []))[1]))
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    return labels


def _whose(result: Mapping[str, Sequence[Mapping]]) -> str:
    return f"{name_of(next(iter(result)))}: " if len(result) > 1 else ""


def _lambda_path(rounds: Sequence[Mapping]) -> tuple[list[float], list[float]]:
    at, lam = series(rounds, "dual/lambda")
    after = finite(rounds[-1], "dual/lambda_next") if rounds else None
    return (at, lam) if after is None else ([*at, rounds[-1]["round"] + 1], [*lam, after])


def _line(axes: Axes, who: str, at: Sequence[float], values: Sequence[float], named: bool) -> list[Label]:
    marker = "o" if len(at) <= MANY_ROUNDS else ""
    axes.plot(at, values, marker=marker, ms=4, lw=1.8, color=colour_of(who), label=who, zorder=3)
    return [Label(0, values[-1], name_of(who), text_colour(who))] if named and values else []


def draw_cost(axes: Axes, run: Run) -> list[Label]:
    """E[c] by round with its 95 % band, C_limit, the infeasible side shaded; returns margin labels."""
    result, labels = loops(run), []
    for who, rounds in result.items():
        at, cost = series(rounds, "dual/expected_cost")
        labels += _line(axes, who, at, cost, named=len(result) > 1)
        _band(axes, who, rounds)
    axes.margins(y=0.12)
    labels += _cost_lines(axes, run)
    axes.set_ylabel("E[cost] (cost units)")
    axes.set_xlabel("dual round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(_whose(result) + _cost_title(run, next(iter(result.values()), [])))
    return labels


def _band(axes: Axes, who: str, rounds: Sequence[Mapping]) -> None:
    both = ("dual/expected_cost", "dual/expected_cost_se")
    known = [row for row in rounds if all(finite(row, key) is not None for key in both)]
    at, cost = series(known, both[0])
    half = 1.96 * np.array(series(known, both[1])[1])
    axes.fill_between(at, np.array(cost) - half, np.array(cost) + half, color=colour_of(who), alpha=0.2, lw=0, zorder=2)


def _cost_lines(axes: Axes, run: Run) -> list[Label]:
    labels = []
    if (limit := c_limit(run)) is not None:
        axes.axhline(limit, lw=1.3, color=VERMILLION, zorder=2)
        top = max(axes.get_ylim()[1], limit)
        axes.axhspan(limit, top + abs(top - limit), color=VERMILLION, alpha=0.07, lw=0, zorder=0)
        axes.set_ylim(top=top)
        axes.annotate("infeasible", (1, 1), (-6, -6), **corner("right", "top"), color=text_colour("dpo"))
        labels.append(Label(0, limit, f"limit {signed(telling(limit))}", text_colour("dpo")))
    if (exact := finite(run.metrics, "exact/expected_cost")) is not None and not unreachable(run.metrics):
        axes.axhline(exact, ls="--", lw=1.3, color=INK, zorder=2)
        labels.append(Label(0, exact, f"exact {signed(telling(exact))}", INK))
    return labels


def corner(ha: str, va: str) -> dict:
    """Where and how a quiet word in a corner of the axes is written."""
    return {"xycoords": "axes fraction", "textcoords": "offset points", "ha": ha, "va": va, "fontsize": 8.5}


def c_limit(run: Run) -> float | None:
    """C_limit as recorded, else as the last round implies it: E[c] minus the violation."""
    if (limit := finite(run.metrics, "dual/c_limit")) is not None or not run.rounds:
        return limit
    cost, violation = finite(run.rounds[-1], "dual/expected_cost"), finite(run.rounds[-1], "dual/violation")
    return None if cost is None or violation is None else cost - violation


def _cost_title(run: Run, rounds: Sequence[Mapping]) -> str:
    last: Mapping = next((row for row in reversed(rounds) if finite(row, "dual/expected_cost") is not None), {})
    error = finite(last, "dual/expected_cost_se")
    return cost_title(finite(last, "dual/expected_cost"), None if error is None else 1.96 * error, c_limit(run))
