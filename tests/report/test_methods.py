"""A method is data: one entry of `METHODS` gives a method its title, colour, marker and rank in every part of the report."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from matplotlib.colors import same_color
from rich.console import Console

from cdpo_lightning.config import methods
from cdpo_lightning.report import Run, final_table, verdict
from cdpo_lightning.report.figures.run_figures import dual_rounds, reward_cost
from cdpo_lightning.report.formatting import evaluated_policies, main_policy
from cdpo_lightning.report.run.page import render
from cdpo_lightning.report.sweep.report_files import build_sweep
from cdpo_lightning.report.tables.export import to_markdown
from tests.report.synthetic import write_sweep

MINE = methods.MethodSpec("preference", "dual", title="My method", colour="#123456", marker="h", prominence=9)


@pytest.fixture
def run_with_mine(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run in which `mine`, added before all other methods, has the results of `cdpo` too."""
    monkeypatch.setattr(methods, "METHODS", {"mine": MINE, **methods.METHODS})
    own = {key.replace("/cdpo/", "/mine/"): value for key, value in run.metrics.items()}
    rounds = [{**row, "who": "mine"} for row in run.rounds]
    return dataclasses.replace(run, metrics=run.metrics | own, rounds=(*run.rounds, *rounds))


def test_a_new_method_has_its_title_in_table_screen_and_page(run_with_mine: Run) -> None:
    assert "| My method | 0.70 [0.65, 0.75]" in to_markdown(run_with_mine.metrics)
    console = Console(file=io.StringIO(), width=100)
    final_table(run_with_mine.metrics, console)
    assert ["My", "method", "0.70", "±", "0.05"] in [line.split()[:5] for line in console.file.getvalue().splitlines()]
    assert ">My method</th>" in render(run_with_mine, {})


def test_a_new_method_has_its_colour_and_marker_in_the_figures(run_with_mine: Run) -> None:
    (axes,) = reward_cost(run_with_mine).axes
    line = next(bars.lines[0] for bars in axes.containers if bars.get_label() == "mine")
    assert same_color(line.get_color(), "#123456")
    assert line.get_marker() == "h"
    assert "My method" in {text.get_text() for text in axes.texts}
    upper, _ = dual_rounds(run_with_mine).axes
    assert same_color(next(line for line in upper.lines if line.get_label() == "mine").get_color(), "#123456")


def test_the_order_and_the_prominence_come_from_the_entry(run_with_mine: Run) -> None:
    assert evaluated_policies(run_with_mine.metrics)[:3] == ["reference", "mine", "sft"]
    assert main_policy(run_with_mine.metrics) == "mine"
    assert verdict(run_with_mine.metrics).startswith("My method: E[cost] -0.29")


def test_a_new_method_has_its_title_and_colour_on_the_page_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS, "mine": MINE})
    write_sweep(tmp_path, 1)
    path = tmp_path / "0" / "metrics.json"
    path.write_text(path.read_text().replace("/cdpo/", "/mine/").replace('"run/method": "cdpo"', '"run/method": "mine"'))
    page = build_sweep([tmp_path], tmp_path / "report", live=True).read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert (data["names"]["mine"], data["colours"]["mine"]) == ("My method", "#123456")


@pytest.mark.parametrize(("name", "title"), [("reference", "reference"), ("optimum", "optimum (exact)"), ("policy_7", "policy_7")])
def test_what_no_method_trains_has_a_title_too(name: str, title: str) -> None:
    assert methods.presentation_of(name).title == title


def test_baselines_are_ranked_below_every_method_that_is_none() -> None:
    ranks = {name: methods.presentation_of(name).prominence for name in methods.table_order()}
    assert [name for name in sorted(ranks, key=ranks.get) if ranks[name] < 0] == ["reference", "sft", "cost_only", "dpo"]
    assert sorted(ranks, key=ranks.get, reverse=True)[:5] == ["cdpo", "o_pd_dpo", "pd_dpo", "ppo_lag", "cdpo_fixed"]
