"""Every method in one run on the same data: metrics, compute budgets, exports and names; and each method alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo_lightning.config import METHODS, RunConfig
from cdpo_lightning.errors import ConfigError, DataError
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.pipeline.run import run

Configure = Callable[..., RunConfig]
SMALL = ["dataset.scores=oracle", "policy.epochs=2", "primal_dual.reward_epochs=1", "primal_dual.epochs=2", "primal_dual.refresh=4",
         "ppo.rounds=2", "ppo.samples_per_prompt=4", "constraint.c_limit=1.0"]  # fmt: skip
BUDGET = {"trained_tokens", "sampled_tokens", "scorer_forwards", "models_resident", "wall_seconds"}


@pytest.fixture(scope="module")
def all_methods(configure: Configure) -> tuple[RunConfig, Metrics]:
    """Run all methods; return the configuration and metrics.json."""
    others = ",".join(who for who in METHODS if who != "cdpo")
    config = configure(*SMALL, f"method.baselines=[{others}]", "method.fixed_lambda=exact")
    run(config)
    return config, json.loads((Path(config.run_dir) / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_method_is_evaluated_exported_and_has_a_compute_budget(all_methods: tuple[RunConfig, Metrics]) -> None:
    config, metrics = all_methods
    for who in METHODS:
        assert METHODS[who].title
        assert f"eval/{who}/cost_mean" in metrics
        assert f"exact/{who}/kl_to_optimum" in metrics
        result = {key.rpartition("/")[2] for key in metrics if key.startswith(f"budget/{who}/")}
        assert result >= BUDGET - ({"wall_seconds"} if who == "sft" else set())
    assert {path.name for path in (Path(config.run_dir) / "export").iterdir()} == set(METHODS)


@pytest.mark.slow
def test_the_budgets_count_what_each_method_computes(all_methods: tuple[RunConfig, Metrics]) -> None:
    _, metrics = all_methods

    def budget(who: str, name: str) -> float:
        return metrics[f"budget/{who}/{name}"]

    responses = budget("cdpo_paper", "scorer_forwards") - 2 * metrics["dual/scored"]
    assert budget("safe_dpo", "sampled_tokens") == 0, "no rounds"
    assert budget("safe_dpo", "models_resident") == budget("sacpo", "models_resident") == 1
    assert budget("sacpo", "sampled_tokens") == 0, "lambda is given"
    assert budget("pd_dpo", "sampled_tokens") > 0
    assert budget("pd_dpo", "models_resident") == budget("cdpo", "models_resident") == 2, (
        "the policy and a reference; oracles are no models"
    )
    assert budget("ppo_lag", "models_resident") == 4, "actor, two critics, reference"
    assert budget("cdpo", "scorer_forwards") > budget("dpo", "scorer_forwards"), "DPO's labels need no cost"
    assert responses > 0
    assert budget("ppo_lag", "trained_tokens") % 3 == 0


@pytest.mark.slow
def test_a_fixed_lambda_is_the_exact_one_and_sft_is_the_reference(all_methods: tuple[RunConfig, Metrics]) -> None:
    _, metrics = all_methods
    for who in ("cdpo_fixed", "sacpo"):
        assert metrics[f"dual/{who}/lambda"] == pytest.approx(metrics["exact/lambda"])
    assert metrics["dual/cost_only/lambda"] == 10
    for name in ("expected_cost", "kl_to_optimum"):
        assert metrics[f"exact/sft/{name}"] == metrics[f"exact/reference/{name}"]


@pytest.mark.parametrize("who", ["sft", pytest.param("pd_dpo", marks=pytest.mark.slow), "safe_dpo"])
def test_a_method_alone(configure: Configure, who: str) -> None:
    config = configure(*SMALL, f"method={who}", "method.baselines=[]")
    metrics = run(config)
    assert metrics["run/method"] == who
    assert f"eval/{who}/cost_mean" in metrics
    assert ("dual/lambda" in metrics) == (who == "pd_dpo")
    assert [path.name for path in (Path(config.run_dir) / "export").iterdir()] == [who]


@pytest.mark.slow
def test_a_final_lambda_of_0_returns_the_policy_of_the_reward_stage(configure: Configure) -> None:
    """A limit that does not bind: the policy of the second stage is discarded, that of the first is exported."""
    config = configure(*SMALL, "method=pd_dpo", "method.baselines=[]", "constraint.c_limit=50")
    metrics = run(config)
    assert metrics["dual/lambda"] == 0
    import torch
    from safetensors.torch import load_file

    folder = Path(config.run_dir)
    kept = torch.load(folder / "checkpoints/pd_dpo/reward/last.ckpt", weights_only=True)["state_dict"]
    weights = load_file(folder / "export/pd_dpo/model.safetensors")
    assert all(torch.equal(kept[f"model.{name}"], value) for name, value in weights.items())


@pytest.mark.slow
def test_human_labels_need_no_forward_of_a_scorer(configure: Configure) -> None:
    """DPO, SafeDPO and SACPO on the labels of the data."""
    config = configure(
        *SMALL, "method=sacpo", "constraint.lambda_init=0.5", "method.baselines=[dpo,safe_dpo]", "method.preferences=human"
    )
    metrics = run(config)
    for who in ("dpo", "safe_dpo", "sacpo"):
        assert metrics[f"budget/{who}/scorer_forwards"] == 0
        assert metrics[f"budget/{who}/sampled_tokens"] == 0


@pytest.mark.slow
def test_exact_lambda_of_an_unreachable_limit_is_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"constraint.c_limit=-4.0: .*exact"):
        run(configure(*SMALL, "constraint=fixed", "constraint.lambda_init=exact", "constraint.c_limit=-4"))


def test_pairs_without_a_usable_label_are_refused(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from cdpo_lightning.pipeline.methods import labels

    monkeypatch.setattr(labels, "unsafe_flags", lambda pairs, table: torch.ones(len(pairs), 2, dtype=torch.bool))
    with pytest.raises(DataError, match=r"safe_dpo: .*pairs.*label"):
        run(configure(*SMALL, "method=safe_dpo", "method.baselines=[]"))
