"""The files of a run, and what a second run takes from the store in place of computing it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cdpo_lightning.config import RunConfig, parse
from cdpo_lightning.data.world.closed_form import make_world
from cdpo_lightning.pipeline.run import run
from cdpo_lightning.sweep.objective import objective

Configure = Callable[..., RunConfig]

EVALUATED = {
    "reward_mean", "reward_std", "reward_ci_low", "reward_ci_high", "cost_mean", "cost_std", "cost_ci_low", "cost_ci_high",
    "unsafe_rate", "cost_cvar_90", "feasible", "kl_to_reference", "response_tokens_mean", "unfinished_rate",
}  # fmt: skip
PROMISED = {
    "run/seed", "run/wall_seconds", "run/git_commit", "sft/loss",
    "reward/pair_accuracy", "cost/pair_accuracy", "cost/sign_accuracy", "cost/auroc",
    "data/pairs", "data/dropped", "data/truncated", "data/hash",
    "dual/lambda", "dual/c_limit", "dual/rounds", "dual/expected_cost", "dual/expected_cost_se", "dual/alarm",
    "dual/sampled", "dual/scored",
    "exact/lambda", "exact/expected_cost", "exact/expected_reward", "exact/dual_value",
    "exact/unconstrained_expected_cost", "exact/reachable_cost_min", "exact/reference_expected_cost",
    "store/reward_forwards", "store/cost_forwards", "store/reference_forwards",
    "speed/pairs_per_second", "speed/tokens_per_second", "speed/peak_memory_gb",
    *(f"eval/{who}/{name}" for who in ("reference", "sft", "dpo", "cdpo") for name in EVALUATED),
    *(f"exact/{who}/{name}" for who in ("reference", "dpo", "cdpo")
      for name in ("expected_cost", "expected_reward", "kl_to_optimum", "support_mass", "duality_gap")),
    *(f"truth/{who}/{name}" for who in ("reference", "dpo", "cdpo") for name in ("expected_cost", "expected_reward")),
}  # fmt: skip
TEXTS = {"data/hash", "run/git_commit", "run/command", "run/method", "dual/alarm"}
COUNTS = {"run/seed", "data/pairs", "data/dropped", "data/truncated", "dual/rounds", "dual/sampled", "dual/scored"}


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv."""
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def first(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run with learned scores, a baseline, the report and a store that was empty."""
    everything = "stages=[sft,reward,cost,policy,evaluate,report]"
    own_store = f"artifacts_dir={tmp_path_factory.mktemp('first')}"
    config = configure(everything, own_store, "method.baselines=[dpo]", "constraint.c_limit=1")
    run(config)
    return config


def test_every_promised_file_exists_and_no_temporary_one(first: RunConfig) -> None:
    folder = Path(first.run_dir)
    promised = ["config.yaml", "metrics.json", "history.csv", "samples.jsonl", "report/index.html", "report/table.md"]
    promised += ["report/table.csv", "checkpoints", "export/cdpo/README.md", "export/dpo/model.safetensors"]
    assert [name for name in promised if not (folder / name).exists()] == []
    assert list((folder / "report").glob("*.png"))
    assert [*folder.rglob("*.part"), *Path(first.artifacts_dir).rglob("*.part")] == []


def test_the_files_have_the_permissions_of_the_umask(first: RunConfig) -> None:
    probe = Path(first.run_dir).parent / "probe"
    probe.touch()
    modes = {path.stat().st_mode & 0o777 for path in Path(first.run_dir).rglob("*") if path.is_file()}
    assert modes == {probe.stat().st_mode & 0o777}


def test_every_promised_metric_exists_and_has_its_type(first: RunConfig) -> None:
    metrics = json.loads((Path(first.run_dir) / "metrics.json").read_text(encoding="utf-8"))
    assert PROMISED - metrics.keys() == set()
    texts = TEXTS | {key for key in PROMISED if key.endswith("/feasible")}
    assert {key for key in PROMISED | TEXTS if isinstance(metrics[key], str)} == texts
    assert {key for key in COUNTS if type(metrics[key]) is not int} == set()
    assert all(isinstance(value, (int, float, str)) for value in metrics.values())
    assert {metrics[f"eval/{who}/feasible"] for who in ("sft", "cdpo")} <= {"yes", "no", "undecided"}
    assert metrics["dual/alarm"] in {"none", "pinned_at_zero", "saturated", "infeasible"}
    assert metrics["dual/c_limit"] == 1
    assert metrics["store/reward_forwards"] > 0 < metrics["store/reference_forwards"]


def test_config_yaml_parses_to_the_configuration_of_the_run(first: RunConfig) -> None:
    kept = parse(yaml.safe_load((Path(first.run_dir) / "config.yaml").read_text(encoding="utf-8")))
    assert kept == first


def test_the_history_holds_every_step_and_every_round(first: RunConfig) -> None:
    result = rows(Path(first.run_dir))
    assert {row["stage"] for row in result} == {"sft", "reward", "cost", "policy"}
    rounds = [row for row in result if row["who"] == "cdpo" and row["round"]]
    assert [row["round"] for row in rounds] == ["1", "2"]
    assert rounds[0]["dual/lambda_next"] == rounds[1]["dual/lambda"] != ""
    assert all(row["loss"] and row["lr"] for row in result if not row["round"])


def test_the_samples_have_prompt_response_who_reward_and_cost(first: RunConfig) -> None:
    lines = (Path(first.run_dir) / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert all({"prompt", "response", "who", "reward", "cost"} <= sample.keys() for sample in samples)
    counts = {who: sum(s["who"] == who for s in samples) for who in ("reference", "sft", "dpo", "cdpo")}
    assert counts == dict.fromkeys(counts, 8 * 8)


def test_the_exported_folder_is_the_trained_policy(configure: Configure) -> None:
    """E[cost] of the exported model, by plain transformers over all responses one by one, equals that of the run."""
    config = configure("dataset.scores=oracle")
    metrics = run(config)
    folder = Path(config.run_dir) / "export" / "cdpo"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    world = make_world(config.dataset, config.seed)
    costs, masses = [], []
    for prompt in world.prompts:
        head = tokenizer(f"{prompt}\n", add_special_tokens=False)["input_ids"]
        tails = [[*tokenizer(r, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for r in world.responses]
        ids = torch.tensor([head + tail for tail in tails])
        with torch.no_grad():
            logp = model(ids).logits.log_softmax(-1)[:, len(head) - 1 : -1]
        logp = logp.gather(2, ids[:, len(head) :, None]).sum((1, 2)).double()
        cost = torch.tensor([world.truth(prompt, r)[1] for r in world.responses], dtype=torch.float64)
        costs.append(float((logp.softmax(0) * cost).sum()))
        masses.append(float(logp.exp().sum()))
    assert sum(costs) / 8 == pytest.approx(metrics["exact/cdpo/expected_cost"], abs=1e-5)
    assert sum(masses) / 8 == pytest.approx(metrics["exact/cdpo/support_mass"], abs=1e-5)
    weights = load_file(folder / "model.safetensors")
    checkpoint = torch.load(Path(config.run_dir) / "checkpoints/cdpo/last.ckpt", weights_only=True)["state_dict"]
    assert weights
    assert all(torch.equal(checkpoint[f"model.{name}"], value) for name, value in weights.items())


def test_the_model_card_has_the_sign_convention_and_the_metrics(first: RunConfig) -> None:
    text = (Path(first.run_dir) / "export" / "cdpo" / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((Path(first.run_dir) / "metrics.json").read_text(encoding="utf-8"))
    assert "cost > 0 is harmful" in text
    for value in (first.policy.beta, 1.0, metrics["dual/lambda"], metrics["eval/cdpo/cost_mean"]):
        assert str(value) in text
    assert "| lambda |" not in (Path(first.run_dir) / "export" / "dpo" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        "policy.beta=0.3",
        pytest.param("constraint.c_limit=0.9", marks=pytest.mark.slow),
        pytest.param("policy.labels=bernoulli", marks=pytest.mark.slow),
    ],
)
def test_another_beta_limit_or_labelling_reuses_the_store(first: RunConfig, configure: Configure, change: str) -> None:
    config = configure("policy.epochs=1", f"artifacts_dir={first.artifacts_dir}", change)
    metrics = run(config)
    assert {kind: metrics[f"store/{kind}_forwards"] for kind in ("reward", "cost", "reference")} == dict.fromkeys(
        ("reward", "cost", "reference"), 0
    )
    assert {row["stage"] for row in rows(Path(config.run_dir))} == {"policy"}
    assert [path.name for path in (Path(config.run_dir) / "checkpoints").iterdir()] == ["cdpo"]
    assert metrics["sft/loss"] == json.loads((Path(first.run_dir) / "metrics.json").read_text())["sft/loss"]


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_weights_and_numbers(configure: Configure) -> None:
    one, other = configure("dataset.scores=oracle"), configure("dataset.scores=oracle")
    result, again = run(one), run(other)
    varying = ("speed/", "store/")
    same = [{k: v for k, v in m.items() if not k.startswith(varying) and not k.endswith("wall_seconds")} for m in (result, again)]
    assert same[0] == same[1]
    weights = [(Path(c.run_dir) / "export/cdpo/model.safetensors").read_bytes() for c in (one, other)]
    assert weights[0] == weights[1]


def test_the_objective_of_a_sweep_is_the_reward_where_the_limit_is_met(first: RunConfig) -> None:
    metrics = {"eval/cdpo/reward_mean": 0.25, "eval/cdpo/cost_mean": 0.6}
    assert objective(first, metrics) == 0.25
    assert objective(first, metrics | {"eval/cdpo/cost_mean": 1.05}) == -float("inf")
    assert objective(first, {}) is None
