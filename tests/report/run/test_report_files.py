import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo_lightning.errors import DataError
from cdpo_lightning.report import build
from cdpo_lightning.report.__main__ import main

SMALL = {
    "history_csv": "",
    "samples_jsonl": "",
    "frontier_csv": "",
    "config_yaml": "",
    "metrics_json": '{"run/seed": 1}',
}


def test_the_report_is_six_files(built) -> None:
    names = {path.name for path in (built / "report").iterdir()}
    assert names == {"index.html", "table.md", "table.csv", "dual_rounds.png", "reward_cost.png", "hero.png"}


def test_a_run_of_metrics_alone_has_a_report(tmp_path: Path, make_run: Callable) -> None:
    page = build(make_run(tmp_path, **SMALL))
    assert page == tmp_path / "report" / "index.html"
    assert {path.name for path in page.parent.iterdir()} == {"index.html", "table.md", "table.csv"}


def test_a_run_without_rounds_or_exact_metrics_has_its_reward_cost_figure(tmp_path: Path, make_run: Callable) -> None:
    metrics = json.dumps({"eval/dpo/reward_mean": 1.0, "eval/dpo/cost_mean": 2.0})
    page = build(make_run(tmp_path, **SMALL | {"metrics_json": metrics}))
    assert (page.parent / "reward_cost.png").stat().st_size > 10_000
    assert "no constraint" in page.read_text(encoding="utf-8")


def test_a_figure_of_an_earlier_report_is_removed(tmp_path: Path, make_run: Callable) -> None:
    stale = tmp_path / "report" / "dual_rounds.png"
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    build(make_run(tmp_path, **SMALL))
    assert not stale.exists()


def test_a_run_that_cannot_be_read_keeps_its_old_report(tmp_path: Path, make_run: Callable) -> None:
    page = build(make_run(tmp_path, **SMALL))
    before = page.read_bytes()
    (tmp_path / "samples.jsonl").write_text("{")
    with pytest.raises(DataError):
        build(tmp_path)
    assert page.read_bytes() == before


def test_the_command_builds_every_run_of_a_sweep_and_prints_where(tmp_path, make_run, capsys) -> None:
    for name in ("0", "1"):
        make_run(tmp_path / "sweep" / name, **SMALL)
    assert main([str(tmp_path / "sweep")]) == 0
    pages = [tmp_path / "sweep" / name / "report" / "index.html" for name in ("0", "1", "")]
    assert capsys.readouterr().out.split() == [str(page) for page in pages]
    assert all(page.is_file() for page in pages)


def test_the_command_prints_the_error_and_exits_with_2(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path)]) == 2
    message = capsys.readouterr()
    assert message.out == ""
    assert message.err.startswith(f"error: {tmp_path}: no metrics.json")
    assert message.err.count("\n") == 1


def test_a_broken_run_does_not_stop_the_reports_of_the_others(tmp_path, make_run, capsys) -> None:
    make_run(tmp_path / "0", **SMALL | {"metrics_json": "{"})
    make_run(tmp_path / "1", **SMALL)
    assert main([str(tmp_path), str(tmp_path / "1")]) == 2
    message = capsys.readouterr()
    assert message.err.startswith("error: ")
    assert message.out.split() == [str(tmp_path / "1" / "report" / "index.html")] * 2, "one run is no sweep"


def test_the_command_without_a_folder_exits_with_2(capsys) -> None:
    with pytest.raises(SystemExit) as exited:
        main([])
    assert exited.value.code == 2
    assert "error: " in capsys.readouterr().err
