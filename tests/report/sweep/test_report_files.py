"""The report over many runs: its data, its table and its files."""

import csv
import html
import json
import re
import time
from pathlib import Path

import pytest

from cdpo_lightning.report.__main__ import main
from cdpo_lightning.report.sweep.load import first_responses, flat, load_sweep
from cdpo_lightning.report.sweep.report_files import build_sweep
from tests.report.synthetic import write_sweep


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("many") / "grid", 12)
    (folder / "jobs.json").write_text(
        json.dumps({"jobs": [{"number": 12, "state": "failed", "overrides": ["a=1"], "message": ["no"]}]})
    )
    build_sweep([folder], folder / "report")
    return folder


def test_the_report_is_a_page_a_figure_and_a_table_in_two_formats(twelve: Path) -> None:
    assert {path.name for path in (twelve / "report").iterdir()} == {"index.html", "frontier.png", "table.md", "table.csv"}
    assert (twelve / "report" / "frontier.png").stat().st_size > 10_000


def test_the_page_holds_every_run_with_its_config_and_command(twelve: Path) -> None:
    data = data_of(twelve / "report" / "index.html")
    assert [run["name"] for run in data["runs"]] == [str(n) for n in range(12)], "in the order of their numbers"
    assert data["keys"] == ["policy.beta", "constraint.c_limit"]
    assert data["runs"][5]["values"] == [0.3, -0.5]
    assert data["runs"][5]["command"] == "python run.py policy.beta=0.3 constraint.c_limit=-0.5 seed=0"
    assert data["shared"]["policy.labels"] == "soft"
    assert {run["config"]["policy.beta"] for run in data["runs"]} == {0.1, 0.3, 0.5, 1.0}
    assert len(data["runs"][0]["rounds"]) == 16
    assert [job["state"] for job in data["jobs"]] == ["failed"]
    own = [point for point in data["points"] if point["main"]]
    assert {point["who"] for point in own} == {"cdpo"}
    assert len(own) == 12
    assert own[5]["cost"][1] == pytest.approx(own[5]["cost"][0] - 0.04, abs=1e-4)


def test_the_page_loads_nothing_and_runs_only_its_own_script(twelve: Path) -> None:
    text = (twelve / "report" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in text
    assert text.count("<script") == 2, "a sample cannot end the data and begin a script"
    assert 'http-equiv="refresh"' not in text


def test_markup_in_the_name_of_a_sweep_or_in_its_data_is_text(tmp_path: Path) -> None:
    name = "a <img src=x onerror=alert(1)>"
    write_sweep(tmp_path / name, 1)
    metrics = tmp_path / name / "0" / "metrics.json"
    hostile = {"run/command": "</script><script>alert(1)</script>", "eval/cdpo/category/<b>theft/unsafe_rate": 0.5}
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | hostile))
    page = build_sweep([tmp_path / name], tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    assert f"<h1>{html.escape(f'{tmp_path.name}/{name}')}</h1>" in text
    assert "<img" not in text
    assert "<b>" not in text
    assert text.count("<script") == 2
    (run,) = data_of(page)["runs"]
    assert run["command"] == hostile["run/command"], "the data itself is unchanged"


def test_while_jobs_run_there_is_only_a_page_that_loads_itself_anew(tmp_path: Path) -> None:
    write_sweep(tmp_path, 1)
    page = build_sweep([tmp_path], tmp_path / "report", live=True)
    assert 'http-equiv="refresh"' in page.read_text(encoding="utf-8")
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]


def test_the_csv_has_every_policy_and_the_markdown_one_row_for_each_run(twelve: Path) -> None:
    lines = (twelve / "report" / "table.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines[1:]))
    assert len(rows) == 3 * 12
    assert {row["who"] for row in rows} == {"reference", "dpo", "cdpo"}
    sixth = next(row for row in rows if row["run"] == "5" and row["who"] == "cdpo")
    assert (sixth["policy.beta"], sixth["constraint.c_limit"], sixth["lambda"]) == ("0.3", "-0.5", "1.7")
    table = (twelve / "report" / "table.md").read_text(encoding="utf-8")
    assert "![frontier](frontier.png)" in table
    assert sum(line.startswith("| ") for line in table.splitlines()) == 2 + 12


def test_the_samples_are_responses_to_the_same_prompts(twelve: Path) -> None:
    samples = data_of(twelve / "report" / "index.html")["samples"]
    assert [sample["prompt"] for sample in samples][:2] == ["How?", "Why?"]
    assert [(a["run"], a["who"]) for a in samples[0]["responses"]] == [(0, "reference"), *((n, "cdpo") for n in range(12))]


def test_one_run_has_a_page_too(tmp_path: Path) -> None:
    write_sweep(tmp_path, 1)
    data = data_of(build_sweep([tmp_path / "0"], tmp_path / "out"))
    assert (len(data["runs"]), data["runs"][0]["values"]) == (1, [0.1, -0.8])


@pytest.mark.slow
def test_the_command_writes_one_page_over_several_folders(tmp_path: Path, capsys) -> None:
    for name in ("a", "b"):
        write_sweep(tmp_path / name, 2, rounds=2)
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "both")]) == 0
    paths = capsys.readouterr().out.split()
    assert paths[-1] == str(tmp_path / "both" / "index.html")
    assert len(paths) == 5
    assert len(data_of(tmp_path / "both" / "index.html")["runs"]) == 4
    assert main([str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "a" / "report" / "index.html")], "a run's own page is not made again"


def test_a_configuration_that_cannot_be_read_leaves_the_run_without_one(tmp_path: Path) -> None:
    assert flat("a: {b: 1, c: [1, 2]}\nd: x\n") == {"a.b": 1, "a.c": [1, 2], "d": "x"}
    assert flat("") == flat("a: [") == flat("- 1") == {}
    write_sweep(tmp_path, 2)
    (tmp_path / "1" / "config.yaml").unlink()
    sweep = load_sweep([tmp_path / "0", tmp_path / "1"])
    assert (sweep.value(0, "policy.beta"), sweep.value(1, "policy.beta")) == (0.1, None)


def test_the_first_response_of_one_policy_to_each_prompt(tmp_path: Path) -> None:
    write_sweep(tmp_path, 1)
    first = first_responses(tmp_path / "0", "cdpo", ["Why?"])
    assert {prompt: sample["response"] for prompt, sample in first.items()} == {"Why?": "cdpo answers <b>0</b>"}
    assert first_responses(tmp_path, "cdpo", []) == {}


@pytest.mark.slow
def test_the_page_over_five_hundred_runs_is_small_and_written_within_20_s(tmp_path: Path) -> None:
    write_sweep(tmp_path, 500)
    begin = time.process_time()
    page = build_sweep([tmp_path], tmp_path / "report", live=True)
    assert time.process_time() - begin < 20
    assert page.stat().st_size < 5e6
