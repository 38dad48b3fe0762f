"""What a method takes, by hand."""

from types import SimpleNamespace

import torch

from cdpo_lightning.evaluation.evaluator import SampleCounts
from cdpo_lightning.pipeline.compute_budget import ComputeBudget, of_samples, of_training, round_networks
from cdpo_lightning.scorers.model_scorer import ModelScorer


def test_counts_add_up_and_of_the_networks_in_use_the_larger_number_counts():
    first, second = ComputeBudget(1, 2, 3, 4, 0.5), ComputeBudget(10, 20, 30, 2, 0.25)
    assert first + second == second + first == ComputeBudget(11, 22, 33, 4, 0.75)
    assert first + ComputeBudget() == first


def test_metrics_name_the_method_and_leave_out_seconds_that_were_not_measured():
    assert ComputeBudget(1, 2, 3, 4).metrics("dpo") == {
        "budget/dpo/trained_tokens": 1,
        "budget/dpo/sampled_tokens": 2,
        "budget/dpo/scorer_forwards": 3,
        "budget/dpo/models_resident": 4,
    }
    assert ComputeBudget(wall_seconds=2.5).metrics("dpo")["budget/dpo/wall_seconds"] == 2.5


def test_samples_take_their_tokens_and_a_forward_of_each_scorer_for_each_distinct_text(measurement):
    """2 x 3 samples of three tokens, and 1 x 2; all texts differ. Three scorers read the first, one the second."""
    three = measurement(dict.fromkeys(("reward", "cost", "kind"), torch.zeros(2, 3)))
    one = measurement({"reward": torch.zeros(1, 2)})
    assert of_samples([three, one]) == ComputeBudget(sampled_tokens=18 + 6, scorer_forwards=3 * 6 + 2)
    assert of_samples([]) == ComputeBudget()


def test_training_takes_its_own_tokens_and_those_of_its_rounds():
    meter, counts = SimpleNamespace(tokens=100, seconds=1.5), SampleCounts(samples=8, tokens=40, scored=7)
    assert of_training(meter, counts, scorers=3, networks=5) == ComputeBudget(100, 40, 21, 5, 1.5)


def test_a_round_uses_the_reference_and_the_scorers_that_are_models(look_up):
    model = ModelScorer(None, None, "plain", 8, 1, "32-true", "x")
    scorers = {"reward": model, "cost": look_up({}), "kind": model}
    assert round_networks(SimpleNamespace(scorers=scorers)) == 3
    assert round_networks(SimpleNamespace(scorers={"cost": look_up({})})) == 1
