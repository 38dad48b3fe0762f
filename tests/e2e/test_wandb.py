"""What a run sends to Weights & Biases, read from the file of the offline run."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdpo_lightning.config import RunConfig
from cdpo_lightning.pipeline.run import run
from cdpo_lightning.training.callbacks.wandb_run import _name, before_and_after

Configure = Callable[..., RunConfig]


def records_of(path: Path) -> Iterator[bytes]:
    """Yield the records of an offline run's file: LevelDB's log format after seven bytes, blocks of 32 KiB."""
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield parts
            parts = b""


def nested(items: Any) -> dict[str, Any]:
    """Return values by name; a table or an image is a mapping whose parts are separate items."""
    result: dict[str, Any] = {}
    for item in items:
        first, *rest = item.nested_key or [item.key]
        target, name = (result.setdefault(first, {}), rest[-1]) if rest else (result, first)
        target[name] = json.loads(item.value_json)
    return result


class OfflineRun:
    """One `run-*.wandb` file: its records by kind."""

    def __init__(self, path: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        self.records = [wandb_internal_pb2.Record.FromString(data) for data in records_of(path)]

    def kind(self, name: str) -> list:
        return [getattr(record, name) for record in self.records if record.WhichOneof("record_type") == name]

    @property
    def history(self) -> list[dict]:
        return [nested(row.item) for row in self.kind("history")]

    @property
    def axes(self) -> dict[str, str]:
        return {metric.glob_name or metric.name: metric.step_metric for metric in self.kind("metric")}

    @property
    def config(self) -> dict:
        result = {}
        for update in [row.config for row in self.kind("run")] + self.kind("config"):
            result |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in update.update}
        return result


def offline_runs(folder: Path) -> list[OfflineRun]:
    return [OfflineRun(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


WATCHED = ["dataset.scores=oracle", "logger=wandb", "logger.group=mine", "logger.name=beta=0.5", "logger.artifact=true"]


@pytest.fixture(scope="module")
def job(configure: Configure) -> RunConfig:
    stages = "stages=[sft,reward,cost,policy,evaluate,report]"
    config = configure(*WATCHED, stages, "method.baselines=[dpo]", "trainer.log_every_n_steps=1")
    run(config)
    return config


@pytest.fixture(scope="module")
def read(job: RunConfig) -> OfflineRun:
    result = offline_runs(Path(job.run_dir))
    assert len(result) == 1, "one run, with the baselines in it"
    return result[0]


@pytest.mark.slow
def test_the_run_is_named_grouped_and_tagged(job: RunConfig, read: OfflineRun) -> None:
    begun = read.kind("run")[0]
    metrics = json.loads((Path(job.run_dir) / "metrics.json").read_text())
    assert (begun.run_group, begun.display_name, begun.project) == ("mine", "beta=0.5", "cdpo")
    assert begun.run_id == (Path(job.run_dir) / "wandb_id").read_text().strip()
    expected = {
        "beta=0.5",
        "c_limit=-0.5",
        "method=cdpo",
        "seed=0",
        f"commit={metrics['run/git_commit']}",
        f"data={metrics['data/hash']}",
    }
    assert expected <= set(begun.tags)


@pytest.mark.slow
def test_the_whole_configuration_is_sent(job: RunConfig, read: OfflineRun) -> None:
    config = read.config
    assert (config["policy"]["beta"], config["constraint"]["c_limit"], config["seed"]) == (0.5, -0.5, 0)
    assert {"model", "dataset", "sft", "reward", "cost", "policy", "constraint", "method", "evaluation", "trainer"} <= config.keys()
    assert config["facts"]["data/hash"]


@pytest.mark.slow
def test_every_curve_has_its_axis(read: OfflineRun) -> None:
    curves = {"loss", "logp/chosen", "logp/rejected", "implicit_reward/chosen", "implicit_reward/rejected"}
    dual = {"dual/lambda", "dual/lambda_next", "dual/expected_cost", "dual/expected_cost_se", "dual/violation", "dual/label_flips"}
    logged = {key for row in read.history for key in row}
    assert curves | {f"dpo/{name}" for name in curves} | dual | {"dpo/dual/expected_cost"} <= logged
    axes = read.axes
    assert axes["dual/*"] == "dual/round"
    assert axes["dpo/dual/*"] == "dpo/dual/round"
    assert axes["loss"] == axes["dpo/loss"] == axes["logp/*"] == "trainer/global_step"
    rounds = [row["dual/round"] for row in read.history if "dual/lambda" in row]
    assert rounds == [1, 2]
    steps = [row["trainer/global_step"] for row in read.history if "loss" in row]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_tables_figures_summary_and_the_export_are_sent(job: RunConfig, read: OfflineRun) -> None:
    kinds = {key: value.get("_type") for row in read.history for key, value in row.items() if isinstance(value, dict)}
    assert kinds["final/table"] == kinds["final/samples"] == "table-file"
    assert kinds["figures/dual_rounds"] == kinds["figures/reward_cost"] == "image-file"
    summary = {item.key or item.nested_key[0]: json.loads(item.value_json) for row in read.kind("summary") for item in row.update}
    metrics = json.loads((Path(job.run_dir) / "metrics.json").read_text())
    assert {key: summary[key] for key in metrics if key.startswith("eval/cdpo/")} == {
        key: value for key, value in metrics.items() if key.startswith("eval/cdpo/")
    }
    artifacts = [artifact for artifact in read.kind("artifact") if artifact.type == "model"] or [
        record.request.log_artifact.artifact for record in read.records if record.request.HasField("log_artifact")
    ]
    assert any("model.safetensors" in [entry.path for entry in artifact.manifest.contents] for artifact in artifacts)
    [tables] = [sorted((Path(job.run_dir) / "wandb").rglob("media/table/final/*.json"))]
    samples = json.loads(next(path for path in tables if path.name.startswith("samples")).read_text())
    assert samples["columns"][:3] == ["prompt", "before", "after"]
    assert len(samples["data"]) == 8


@pytest.mark.slow
def test_a_resumed_run_keeps_its_id(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(*WATCHED, "policy.epochs=1")
    with monkeypatch.context() as patched:
        patched.setattr("cdpo_lightning.pipeline.run.evaluate_by_samples", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    run(configure(*WATCHED, "policy.epochs=1", f"run_dir={config.run_dir}", "resume=true"))
    ids = [result.kind("run")[0].run_id for result in offline_runs(Path(config.run_dir))]
    assert len(ids) == 2, "offline each part has a folder; wandb sync joins them by the id"
    assert len(set(ids)) == 1


def test_the_name_is_the_overrides(configuration: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["run.py", "policy.beta=0.1", "+experiment=x", "run_dir=a", "logger=wandb", "hydra.mode=RUN", "--cfg"]
    )
    assert _name(configuration()) == "policy.beta=0.1 +experiment=x"
    assert _name(configuration("logger.name=mine")) == "mine"
    monkeypatch.setattr("sys.argv", ["run.py"])
    assert _name(configuration()) == "closed_form"


def test_samples_before_and_after_are_of_the_same_prompt(tmp_path: Path) -> None:
    rows = [("p", "reference", "a"), ("p", "reference", "b"), ("p", "cdpo", "c"), ("q", "cdpo", "d")]
    text = "".join(json.dumps({"prompt": p, "who": w, "response": r, "reward": 1.0, "cost": 2.0}) + "\n" for p, w, r in rows)
    (tmp_path / "samples.jsonl").write_text(text)
    [row] = before_and_after(tmp_path / "samples.jsonl", "cdpo")
    assert (row["prompt"], row["before"], row["after"]) == ("p", "a", "c")
    assert before_and_after(tmp_path / "none.jsonl", "cdpo") == []
