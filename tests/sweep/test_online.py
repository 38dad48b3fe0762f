"""What is sent to the W&B server online, as a stand-in on this machine receives it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweep.stub import Stub

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = """
import sys
from pathlib import Path
import yaml
from cdpo_lightning.training.callbacks.wandb_run import open_run
from cdpo_lightning.config import parse
config = parse(yaml.safe_load(Path(sys.argv[1]).read_text()))
with open_run(config, Path(sys.argv[2]), {"run/git_commit": "abc", "data/hash": "def"}) as run:
    for at in (1, 2, 3):
        run.log({"dual/lambda": at / 2, "dual/round": at})
    run.summary.update({"eval/cdpo/cost_mean": -0.5})
"""


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    yield made
    made.close()


def environment(stub: Stub, home: Path) -> dict[str, str]:
    own = {
        "WANDB_BASE_URL": stub.url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_MODE": "online",
        "HOME": str(home),
    }
    return {**os.environ, **own, "NO_PROXY": "127.0.0.1", "WANDB_ERROR_REPORTING": "false"}


@pytest.mark.slow
def test_online_the_server_is_told_of_the_run_its_curves_and_its_end(stub: Stub, tmp_path: Path, configuration) -> None:
    from cdpo_lightning.config import to_yaml

    given = configuration(
        "logger=wandb", "logger.offline=false", "logger.group=grid", "logger.name=c_limit=-0.5", "policy.beta=0.3"
    )
    (tmp_path / "config.yaml").write_text(to_yaml(given))
    (tmp_path / "job").mkdir()
    for _ in range(2):
        command = [sys.executable, "-c", RUN, str(tmp_path / "config.yaml"), str(tmp_path / "job")]
        done = subprocess.run(command, env=environment(stub, tmp_path), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    begun = [variables for name, variables in stub.calls if name == "UpsertBucket"]
    assert {one["name"] for one in begun} == {(tmp_path / "job" / "wandb_id").read_text().strip()}, "one run, also when begun anew"
    first = begun[0]
    assert (first["groupName"], first["displayName"], first["project"]) == ("grid", "c_limit=-0.5", "cdpo")
    assert set(first["tags"]) == {"beta=0.3", "c_limit=-0.5", "method=cdpo", "seed=0", "commit=abc", "data=def"}
    config = json.loads(first["config"])
    assert (config["policy"]["value"]["beta"], config["constraint"]["value"]["c_limit"]) == (0.3, -0.5)
    sent = json.dumps(stub.streamed)
    assert "dual/lambda" in sent
    assert "eval/cdpo/cost_mean" in sent
    assert any(body.get("complete") for body in stub.streamed)
    axes = [json.loads(one["config"])["_wandb"]["value"].get("m", []) for one in begun if one.get("config")]
    assert any("dual/round" in json.dumps(metrics) for metrics in axes), "the axis of the dual's curves goes with the run"


@pytest.mark.slow
def test_the_dashboard_is_saved_with_all_its_parts(stub: Stub, tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="pip install -e '.[dashboard]'")
    command = [sys.executable, str(ROOT / "sweeps" / "dashboard.py"), "me", "cdpo", "grid"]
    done = subprocess.run(command, env=environment(stub, tmp_path), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{stub.url}/me/cdpo?nw=")
    [saved] = [variables for name, variables in stub.calls if name.startswith("UpsertView")]
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("me", "cdpo", "constrained DPO: grid")
    spec = json.dumps(json.loads(saved["spec"]))
    for part in (
        "dual/round",
        "dual/violation",
        "config:constraint.value.c_limit",
        "summary:eval/cdpo/reward_mean",
        "final/table",
        "final/samples",
        "grid",
    ):
        assert part in spec, part


def test_the_dashboard_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "wandb_workspaces.py").write_text("raise ImportError")
    command = [sys.executable, str(ROOT / "sweeps" / "dashboard.py"), "me", "cdpo"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: wandb-workspaces is not installed; try: pip install -e '.[dashboard]'\n"
