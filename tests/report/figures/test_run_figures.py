import dataclasses
import math
from itertools import combinations, pairwise

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import same_color, to_rgb
from matplotlib.text import Text

from cdpo_lightning.config import METHODS
from cdpo_lightning.report.figures.dual_panels import dual_loops
from cdpo_lightning.report.figures.labels import _spread
from cdpo_lightning.report.figures.run_figures import dual_rounds, hero, pictures, reward_cost
from cdpo_lightning.report.figures.style import text_colour
from cdpo_lightning.report.figures.titles import cost_title, lambda_title, reward_cost_title

COLOURS = {"reference": "#7a7a7a", "sft": "#000000", "dpo": "#D55E00", "cdpo": "#0072B2"}


def _title(axes: Axes) -> str:
    return " ".join(axes.get_title(loc="left").replace("\N{NO-BREAK SPACE}", " ").split())


def _texts(axes: Axes) -> dict[str, object]:
    return {text.get_text(): text for text in axes.texts}


def _level(axes: Axes, style: str) -> list[float]:
    """Heights of the horizontal lines of this style."""
    lines = (line for line in axes.lines if line.get_linestyle() == style and list(line.get_xdata()) == [0, 1])
    return [line.get_ydata()[0] for line in lines]


def _line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    line = next(line for line in axes.lines if line.get_label() == label)
    return list(line.get_xdata()), list(line.get_ydata())


def test_lambda_is_drawn_round_by_round_with_the_last_step_and_the_exact_value(run) -> None:
    upper, lower = dual_rounds(run).axes
    at, lam = _line(upper, "cdpo")
    assert at == list(range(1, 18))
    assert lam[:-1] == [row["dual/lambda"] for row in run.rounds]
    assert lam[-1] == run.rounds[-1]["dual/lambda_next"]
    assert _level(upper, "--") == [1.161]
    assert "exact λ* 1.16" in _texts(upper)
    assert _title(upper) == "λ settles at 1.17 (exact 1.16)"
    assert upper.get_shared_x_axes().joined(upper, lower)


def test_cost_is_drawn_with_its_band_the_limit_and_the_infeasible_side(run) -> None:
    lower = dual_rounds(run).axes[1]
    _, cost = _line(lower, "cdpo")
    assert cost == [row["dual/expected_cost"] for row in run.rounds]
    band = lower.collections[0].get_paths()[0].get_extents()
    assert band.y1 == pytest.approx(cost[0] + 1.96 * 0.02)
    assert band.y0 == pytest.approx(cost[-1] - 1.96 * 0.02)
    assert _level(lower, "-") == [-0.3]
    assert _level(lower, "--") == [-0.3]
    shade = lower.patches[0].get_extents().transformed(lower.transData.inverted())
    assert shade.y0 == pytest.approx(-0.3)
    assert shade.y1 >= lower.get_ylim()[1]
    assert {"infeasible", "limit −0.30", "exact −0.30"} <= _texts(lower).keys()
    assert lower.get_xlabel() == "dual round"


def test_without_exact_metrics_nothing_exact_is_drawn(run) -> None:
    sampled = {key: value for key, value in run.metrics.items() if not key.startswith("exact/")}
    figure = hero(dataclasses.replace(run, metrics=sampled, frontier=()))
    assert not any("exact" in text for axes in figure.axes for text in [*_texts(axes), _title(axes)])
    assert not any(line.get_label() in ("optimum", "frontier") for axes in figure.axes for line in axes.lines)


def test_each_dual_loop_has_its_line_and_its_label(run) -> None:
    other = [{**row, "who": "ppo_lag", "dual/lambda": 3.0} for row in run.rounds]
    metrics = run.metrics | {"eval/ppo_lag/cost_mean": 0.0}
    upper = dual_rounds(dataclasses.replace(run, rounds=(*run.rounds, *other), metrics=metrics)).axes[0]
    assert _line(upper, "ppo_lag")[1][0] == 3.0
    assert {"C-DPO", "PPO-Lagrangian"} <= _texts(upper).keys()
    assert _title(upper).startswith("C-DPO: λ settles")


def test_rounds_with_few_metrics_are_drawn_too(run) -> None:
    bare = dataclasses.replace(run, metrics={}, rounds=({"round": 1.0, "dual/expected_cost": math.nan},))
    upper, lower = dual_rounds(bare).axes
    assert _title(upper) == "λ was not recorded"
    assert _title(lower) == "E[cost] was not recorded"


def test_every_policy_is_a_point_with_bars_in_a_figure_with_the_optimum_and_the_frontier(run) -> None:
    (axes,) = reward_cost(run).axes
    points = {bars.get_label(): bars.lines[0].get_xydata()[0].tolist() for bars in axes.containers}
    assert points == {"reference": [0.05, 0.0], "sft": [0.05, 0.0], "dpo": [0.6, 1.1], "cdpo": [-0.29, 0.7]}
    assert all(same_color(bars.lines[0].get_color(), COLOURS[bars.get_label()]) for bars in axes.containers)
    assert [bar.get_segments()[0][:, 0].tolist() for bar in axes.containers[-1].lines[2][:1]] == [pytest.approx([-0.33, -0.25])]
    assert _line(axes, "optimum") == ([-0.3], [0.71])
    assert _line(axes, "frontier") == ([0.6, -0.3], [1.1, 0.7])
    shade = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert shade.x1 == pytest.approx(-0.3)
    names = {"reference", "SFT", "DPO", "C-DPO", "exact optimum", "limit −0.30", "feasible", "exact frontier, by λ"}
    assert names == _texts(axes).keys()
    assert _title(axes) == "C-DPO gives up 0.40 reward for 0.89 less cost than DPO and is at the limit −0.30"


@pytest.mark.parametrize("crowd", [False, True])
def test_no_label_covers_another_or_leaves_the_axes(run, crowd) -> None:
    """Reference and SFT are one point; in the crowd, six methods lie within a hundredth of one another."""
    metrics = dict(run.metrics)
    for at, who in enumerate(("pd_dpo", "o_pd_dpo", "ppo_lag", "cdpo_fixed", "mine") if crowd else ()):
        metrics |= {f"eval/{who}/cost_mean": -0.28 - 0.002 * at, f"eval/{who}/reward_mean": 0.69 + 0.002 * at}
    figure = reward_cost(dataclasses.replace(run, metrics=metrics))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = {name: Text.get_window_extent(text) for name, text in _texts(axes).items()}
    assert not [(one, other) for one, other in combinations(boxes, 2) if boxes[one].overlaps(boxes[other])]
    frame = axes.bbox.padded(1)
    assert all(frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1) for box in boxes.values())


def test_margin_labels_at_one_height_do_not_overlap(run) -> None:
    figure = dual_rounds(run)
    figure.draw_without_rendering()
    texts = _texts(figure.axes[1])
    assert not texts["limit −0.30"].get_window_extent().overlaps(texts["exact −0.30"].get_window_extent())
    assert figure.bbox.x1 >= texts["limit −0.30"].get_window_extent().x1


@given(st.lists(st.floats(0, 500), min_size=1, max_size=8).map(sorted))
def test_spread_heights_keep_order_distance_and_centre(heights) -> None:
    moved = _spread(heights, 12.0)
    assert len(moved) == len(heights)
    assert all(after - before >= 12 - 1e-6 for before, after in pairwise(moved))
    assert np.mean(moved) == pytest.approx(np.mean(heights), abs=1e-6)


def test_distant_heights_do_not_move() -> None:
    assert _spread([0.0, 20.0, 40.0], 12.0) == [0.0, 20.0, 40.0]


def test_the_files_are_png_of_the_expected_size(built) -> None:
    for name, width, height in (("dual_rounds", 1216, 896), ("reward_cost", 1216, 832), ("hero", 1760, 656)):
        png = (built / "report" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) > 20_000
        assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (width, height)


def test_there_is_no_picture_without_results_to_draw(run) -> None:
    assert list(pictures(dataclasses.replace(run, rounds=()))) == ["reward_cost.png"]
    assert pictures(dataclasses.replace(run, rounds=(), metrics={})) == {}


def test_the_matplotlib_style_of_the_user_is_neither_used_nor_changed(run) -> None:
    with mpl.rc_context({"font.size": 40, "axes.facecolor": "red"}):
        figure = reward_cost(run)
        assert mpl.rcParams["font.size"] == 40
    assert same_color(figure.axes[0].get_facecolor(), "white")


@pytest.mark.parametrize("who", ["reference", *METHODS, "a_policy_of_no_method"])
def test_a_label_can_be_read_on_white(who) -> None:
    """WCAG: a contrast of at least 4.5 to 1 for text of this size."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(text_colour(who))]
    assert 1.05 / (np.dot([0.2126, 0.7152, 0.0722], linear) + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("path", "metrics", "title"),
    [
        ([0, 0.5, 1.0, 1.15, 1.16, 1.17, 1.17, 1.17], {"exact/lambda": 1.161}, "λ settles at 1.17 (exact 1.16)"),
        ([0, 1, 2, 3, 4, 5, 6, 7], {"dual/lambda": 7.0}, "λ is still rising, at 7.00"),
        ([0, 2, 0, 2, 0, 2, 0, 2, 0], {}, "λ is still moving, at 0.00"),
        ([0, 0, 0, 0, 0], {"exact/lambda": 0.0}, "λ stays at 0: the limit does not bind (exact 0.00)"),
        ([0.0, 0.8], {}, "λ is at 0.80"),
        ([0, 9, 20, 30, 40], {"exact/lambda": 99.0, "dual/c_limit": -3.0, "exact/reachable_cost_min": -2.0}, None),
    ],
)
def test_the_title_says_how_lambda_moved(path, metrics, title) -> None:
    assert lambda_title(metrics, path) == (title or "λ is still rising, at 40.00")


@pytest.mark.parametrize(
    ("cost", "half", "side"), [(-0.29, 0.04, "at"), (-0.5, 0.04, "below"), (0.1, 0.04, "above"), (0.1, None, "above")]
)
def test_the_title_says_on_which_side_the_cost_ends(cost, half, side) -> None:
    assert f", {side} the limit" in cost_title(cost, half, -0.3)


def test_the_title_says_gives_up_only_if_reward_was_lost_for_less_cost(metrics) -> None:
    better = reward_cost_title(metrics | {"eval/cdpo/reward_mean": 1.3, "eval/cdpo/feasible": "yes"})
    assert better.startswith("C-DPO has 0.20 more reward and 0.89 less cost than DPO and meets the limit")


def test_a_difference_whose_interval_contains_0_is_not_reported(metrics) -> None:
    unsure = metrics | {"eval/cdpo/minus_dpo/reward_ci_low": -0.02, "eval/cdpo/minus_dpo/reward_ci_high": 0.05}
    assert reward_cost_title(unsure).startswith("C-DPO has 0.89 less cost than DPO at about the same reward and is at the limit")
    cost = {"eval/cdpo/minus_dpo/cost_ci_low": -0.02, "eval/cdpo/minus_dpo/cost_ci_high": 0.05}
    assert reward_cost_title(unsure | cost).startswith("C-DPO has about the reward and the cost of DPO and is at the limit")
    assert "less reward than DPO at about the same cost and is at the limit" in reward_cost_title(metrics | cost)
    sure = unsure | {"eval/cdpo/minus_dpo/reward_ci_low": 0.01}
    assert "about" not in reward_cost_title(sure)


def test_of_many_methods_only_those_whose_lambda_moves_are_drawn(run) -> None:
    """The rounds of a first stage, whose policy is not evaluated, are not drawn either."""
    main = [row for row in run.rounds if row.get("who", "cdpo") == "cdpo"]
    still = [
        {**row, "who": f"m{i}", "dual/lambda": 1.0, "dual/lambda_next": 1.0} for i in range(5) for row in main
    ]  # fmt: skip
    rest = [{**row, "who": who} for who in ("pd_dpo", "pd_dpo_reward") for row in main]
    evaluated = {f"eval/{who}/cost_mean": 0.0 for who in ("cdpo", "pd_dpo", *(f"m{i}" for i in range(5)))}
    many = dataclasses.replace(run, rounds=[*main, *still, *rest], metrics=run.metrics | evaluated)
    assert list(dual_loops(many)) == ["cdpo", "pd_dpo"]
    few = dataclasses.replace(many, rounds=[*main, *still[: 2 * len(main)]])
    assert list(dual_loops(few)) == ["cdpo", "m0", "m1"]


def test_the_title_compares_with_dpo_else_sft_else_the_reference_else_nothing(metrics) -> None:
    without = {key: value for key, value in metrics.items() if "/dpo/" not in key}
    assert reward_cost_title(without).startswith("C-DPO has 0.70 more reward and 0.34 less cost than SFT and is at the limit")
    without = {key: value for key, value in without.items() if "/sft/" not in key}
    assert "less cost than the reference and is at the limit" in reward_cost_title(without)
    alone = {key: value for key, value in without.items() if "/reference/" not in key}
    assert reward_cost_title(alone) == "C-DPO is at the limit\N{NO-BREAK SPACE}−0.30: reward 0.70 ± 0.05, cost −0.29 ± 0.04"
    del alone["dual/c_limit"]
    assert reward_cost_title(alone) == "C-DPO: reward 0.70 ± 0.05, cost −0.29 ± 0.04"


def test_a_baseline_is_not_compared_with_itself(metrics) -> None:
    plain = {key: value for key, value in metrics.items() if "/cdpo/" not in key}
    assert reward_cost_title(plain).startswith("DPO has 1.10 more reward and 0.55 more cost than SFT")
    assert reward_cost_title({"eval/reference/cost_mean": 1.0, "eval/reference/reward_mean": 0.5}).startswith("reference: ")
