from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo_lightning.errors import DataError
from cdpo_lightning.report import find_runs, load_run

HISTORY = "stage,who,step,round,dual/lambda,loss\n"


def test_a_row_is_a_dual_round_iff_its_round_is_filled(run) -> None:
    assert [row["round"] for row in run.rounds] == list(range(1, 17))
    assert {row["who"] for row in run.rounds} == {"cdpo"}


def test_an_empty_cell_is_a_missing_key(tmp_path: Path, make_run: Callable) -> None:
    folder = make_run(tmp_path, history_csv=HISTORY + "policy,cdpo,3,1,,\n")
    assert load_run(folder).rounds == ({"stage": "policy", "who": "cdpo", "step": 3.0, "round": 1.0},)


def test_of_a_round_written_twice_the_last_row_is_read(tmp_path: Path, make_run: Callable) -> None:
    """A resumed run repeats the rounds after its checkpoint; two loops may have a round of the same number."""
    rows = "policy,cdpo,1,2,0.5,\npolicy,cdpo,1,1,0.1,\npolicy,cdpo,1,2,0.6,\npolicy,pd_dpo,1,2,9,\n"
    rounds = load_run(make_run(tmp_path, history_csv=HISTORY + rows)).rounds
    assert [(row["who"], row["round"], row["dual/lambda"]) for row in rounds] == [
        ("cdpo", 1, 0.1),
        ("cdpo", 2, 0.6),
        ("pd_dpo", 2, 9),
    ]


def test_only_metrics_are_needed(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"run/seed": 1, "run/git_commit": null}')
    run = load_run(tmp_path)
    assert (run.rounds, run.samples, run.config_text, run.frontier) == ((), (), "", ())
    assert run.metrics == {"run/seed": 1}


def test_the_frontier_is_sorted_by_lambda(run) -> None:
    assert run.frontier == ((0.0, 0.6, 1.1), (1.0, -0.3, 0.7))


def test_a_run_is_named_by_the_last_two_parts_of_its_path(run) -> None:
    assert run.name == "demo/12-00"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics_json", "", "no metrics.json"),
        ("metrics_json", '{"a": 1', "metrics.json: not JSON"),
        ("metrics_json", "[1]", "expected an object of names and values, got list"),
        ("history_csv", HISTORY + "policy,cdpo,3,soon,,\n", "history.csv: expected a number.*'soon'"),
        ("history_csv", HISTORY + "policy,cdpo,3,nan,,\n", "history.csv: expected a number.*nan"),
        ("samples_jsonl", '{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n', "samples.jsonl, line 2: expected"),
        ("samples_jsonl", '{"prompt": "a", "response": "b"}\n\n{"prom', "samples.jsonl, line 3: not JSON"),
        ("frontier_csv", "lambda,cost\n0,1\n", "frontier.csv: expected the columns lambda"),
        ("frontier_csv", "lambda,expected_cost,expected_reward\n0,1,inf\n", "frontier.csv: expected"),
    ],
)
def test_a_broken_file_is_named_on_one_line(tmp_path: Path, make_run: Callable, name: str, text: str, message: str) -> None:
    folder = make_run(tmp_path / "run", **{name: text})
    with pytest.raises(DataError, match=message) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


def test_runs_are_found_in_a_sweep_but_not_inside_a_run(tmp_path: Path, make_run: Callable) -> None:
    for name in ("b/1", "b/0", "a"):
        make_run(tmp_path / name)
    make_run(tmp_path / "a" / "export" / "cdpo")
    make_run(tmp_path / "artifacts" / "scores")
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b/0", tmp_path / "b/1"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_runs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name}: no metrics.json here or below"):
        find_runs(tmp_path / name)
