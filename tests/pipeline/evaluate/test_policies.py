"""Every policy is evaluated alike: by samples with a stub evaluator, and exactly on a small enumerated problem."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.corpus import Corpus, Split
from cdpo_lightning.data.records import EvaluationPrompt, MultipleChoice
from cdpo_lightning.evaluation.exact import ExactProblem, all_rows
from cdpo_lightning.pipeline.evaluate.policies import Candidate, evaluate_by_samples, evaluate_exactly, make_candidates
from cdpo_lightning.pipeline.prepare import EvaluationSetup
from cdpo_lightning.streams import Stream, stream_seed

LIMITED = (Constraint("cost", "cost", Mean(), 0.0),)
EMPTY = Split([], [])


# Candidates


def names(candidates):
    return {one.model: one.names for one in candidates}


def test_the_reference_is_called_sft_too_where_it_is_the_model_after_sft():
    assert names(make_candidates("ref", {"dpo": "a", "cdpo": "b"}, has_sft=True)) == {
        "ref": ("reference", "sft"), "a": ("dpo",), "b": ("cdpo",),
    }  # fmt: skip
    assert names(make_candidates("ref", {"cdpo": "b"}, has_sft=False)) == {"ref": ("reference",), "b": ("cdpo",)}


def test_the_method_sft_is_the_reference_and_is_evaluated_once():
    assert names(make_candidates("ref", {"sft": "ref", "cdpo": "b"}, has_sft=False)) == {
        "ref": ("reference", "sft"), "b": ("cdpo",),
    }  # fmt: skip
    assert names(make_candidates("ref", {}, has_sft=False)) == {"ref": ("reference",)}


# By samples


@pytest.fixture
def setup(stub_evaluator, measurement, inference, encoder):
    """Three prompts; the reference's costs are above 0, those of `a` below."""
    prompts = ["how?", "who?", "why?"]
    measured = {
        "ref": measurement({"reward": torch.zeros(3, 2), "cost": [[1.0, 2], [1, 2], [1, 2]]}, prompts),
        "a": measurement({"reward": torch.ones(3, 2), "cost": [[-1.0, -2], [-1, -2], [-1, -2]]}, prompts),
    }
    items = [EvaluationPrompt("how?", ("x",)), EvaluationPrompt("who?"), EvaluationPrompt("why?", ("x",))]
    corpus = Corpus(EMPTY, EMPTY, EMPTY, [], items)
    return EvaluationSetup(corpus, LIMITED, stub_evaluator(measured, "ref", encoder), inference, constants=None)


CANDIDATES = [Candidate("ref", ("reference", "sft")), Candidate("a", ("cdpo",))]


def test_every_policy_has_the_same_prompts_count_and_seed(config, setup, tmp_path, screen):
    evaluate_by_samples(config, setup, CANDIDATES, tmp_path, screen)
    expected = (["how?", "who?", "why?"], 2, stream_seed(0, Stream.EVALUATION_SAMPLES), None)
    assert setup.evaluator.calls == [("ref", *expected), ("a", *expected)], "one measurement a policy, not a name"


def test_metrics_are_under_every_name_with_verdict_categories_and_comparison(config, setup, tmp_path, screen):
    result = evaluate_by_samples(config, setup, CANDIDATES, tmp_path, screen)
    means = {who: result[f"eval/{who}/cost_mean"] for who in ("reference", "sft", "cdpo")}
    assert means == {"reference": 1.5, "sft": 1.5, "cdpo": -1.5}
    assert {who: result[f"eval/{who}/feasible"] for who in means} == {"reference": "no", "sft": "no", "cdpo": "yes"}
    assert result["eval/cdpo/kl_to_reference"] == pytest.approx(0.5)
    assert result["eval/cdpo/category/x/prompts"] == 2
    assert result["eval/cdpo/minus_sft/cost"] == -3.0
    assert result["eval/cdpo/win_rate_vs_sft"] == 1.0
    assert not [key for key in result if "refusal" in key or "truthfulqa" in key], "their files are not named"


def test_the_samples_file_has_every_sample_of_every_name(config, setup, tmp_path, files, screen):
    evaluate_by_samples(config, setup, CANDIDATES, tmp_path, screen)
    rows = [json.loads(line) for line in files("samples.jsonl")]
    assert [row["who"] for row in rows] == ["reference"] * 6 + ["sft"] * 6 + ["cdpo"] * 6
    assert rows[-1] == {"prompt": "why?", "response": "r1", "who": "cdpo", "reward": 1.0, "cost": -2.0}
    assert not (tmp_path / "refusals.jsonl").exists()


def test_a_few_prompts_are_spread_over_the_file(config, setup, tmp_path, screen):
    """Two of three are the first and the second: 0 and 3/2 rounded down."""
    evaluator = replace_measured(setup, count=2)
    few = replace(config, evaluation=replace(config.evaluation, prompts=2, samples_per_prompt=5))
    evaluate_by_samples(few, replace(setup, evaluator=evaluator), CANDIDATES, tmp_path, screen)
    assert {(tuple(call[1]), call[2]) for call in evaluator.calls} == {(("how?", "who?"), 5)}


def replace_measured(setup, count):
    """The stub with the measurements of the first `count` prompts."""
    first = {}
    for who, one in setup.evaluator.measured.items():
        kept = one.prompt < count
        tensors = {name: getattr(one, name)[kept] for name in ("prompt", "policy_logp", "reference_logp")}
        scores = {name: score[kept] for name, score in one.scores.items()}
        n = int(kept.sum())
        first[who] = replace(one, samples=one.samples[:n], texts=one.texts[:n], scores=scores, **tensors)
    return type(setup.evaluator)(first, "ref", setup.evaluator.encoder)


def test_a_policy_that_reads_other_tokens_has_no_kl(config, setup, encoder, tmp_path, screen):
    own = replace(encoder, max_prompt=8)
    candidates = [CANDIDATES[0], Candidate("a", ("policy",), own)]
    result = evaluate_by_samples(config, setup, candidates, tmp_path, screen)
    assert setup.evaluator.calls[-1][-1] is own
    assert "eval/policy/kl_to_reference" not in result
    assert "eval/reference/kl_to_reference" in result


def test_a_constraint_of_its_own_score_has_its_own_verdict(config, setup, tmp_path, screen):
    both = replace(setup, constraints=(*LIMITED, Constraint("generous", "reward", Mean(), 0.5)))
    result = evaluate_by_samples(config, both, CANDIDATES, tmp_path, screen)
    met = {who: (result[f"eval/{who}/cost/met"], result[f"eval/{who}/generous/met"]) for who in ("reference", "cdpo")}
    assert met == {"reference": ("no", "yes"), "cdpo": ("yes", "no")}


def test_refusals_are_counted_and_written_under_every_name(config, setup, encoder, tmp_path, files, screen):
    """Both policies refuse the first prompt and answer the second."""
    items = [EvaluationPrompt("how?", ("safe",)), EvaluationPrompt("who?", ("unsafe",))]
    calls = []

    def draw(model, prompts, count, seed, own_encoder):
        calls.append((model, prompts, count, own_encoder))
        samples = [SimpleNamespace(prompt=p) for p in (0, 0, 1, 1)]
        return samples, [(prompts[s.prompt], "I cannot help with that." if s.prompt == 0 else "Sure, do.") for s in samples]

    setup.evaluator.draw = draw
    setup = replace(setup, corpus=replace(setup.corpus, refusal_prompts=items))
    own = replace(encoder, max_prompt=8)
    result = evaluate_by_samples(config, setup, [CANDIDATES[0], Candidate("a", ("policy",), own)], tmp_path, screen)
    assert [(model, used) for model, *_, used in calls] == [("ref", encoder), ("a", own)]
    for who in ("reference", "sft", "policy"):
        assert (result[f"eval/{who}/refusal/safe_rate"], result[f"eval/{who}/refusal/unsafe_rate"]) == (1.0, 0.0)
    rows = [json.loads(line) for line in files("refusals.jsonl")]
    assert len(rows) == 3 * 4
    assert rows[0] == {
        "prompt": "how?", "response": "I cannot help with that.", "who": "reference", "label": "safe", "refused": True,
    }  # fmt: skip
    assert [row["refused"] for row in rows[:4]] == [True, True, False, False]


def test_truthfulqa_is_under_every_name(config, setup, make_model, measurement, tmp_path, screen):
    """One question of two options: exactly one of them is more likely."""
    model = make_model()
    setup.evaluator.measured[model] = setup.evaluator.measured["ref"]
    options = (("gladly, ask an expert", True), ("well,", False))
    questions = [MultipleChoice("how do i fix a bike?", options, options)]
    setup = replace(setup, corpus=replace(setup.corpus, questions=questions))
    result = evaluate_by_samples(config, setup, [Candidate(model, ("reference", "sft"))], tmp_path, screen)
    assert result["eval/reference/truthfulqa/mc1"] == result["eval/sft/truthfulqa/mc1"] in (0.0, 1.0)
    assert 0 < result["eval/sft/truthfulqa/mc2"] < 1


# Exactly


PROMPTS, RESPONSES = [(3,), (4, 5)], [(6, 1), (7, 8, 1), (9, 1), (10, 1)]


@pytest.fixture
def problem(make_model, inference):
    """Four responses to two prompts, whose reference is a model; costs and rewards pull together."""
    generator = torch.Generator().manual_seed(2)
    reward = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    scores = {"reward": reward, "cost": reward + torch.randn(2, 4, generator=generator, dtype=torch.float64)}
    rows = all_rows(PROMPTS, RESPONSES)
    logp = inference.logp(make_model(0), rows).view(2, 4)
    unconstrained = float(((logp.log_softmax(1) + reward / 0.5).softmax(1) * scores["cost"]).sum(1).mean())
    limited = (Constraint("cost", "cost", Mean(), unconstrained - 0.3),)
    return ExactProblem(logp, scores, {"reward": reward, "cost": -reward}, limited, 0.5, rows)


def test_without_an_enumerated_world_nothing_is_exact(inference, tmp_path):
    assert evaluate_exactly(None, CANDIDATES, inference, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_exact_values_are_those_of_the_problem_and_of_each_policy(problem, make_model, inference, tmp_path):
    reference, policy = make_model(0), make_model(1)
    candidates = make_candidates(reference, {"cdpo": policy}, has_sft=True)
    result = evaluate_exactly(problem, candidates, inference, tmp_path)
    limit = problem.constraints[0].limit
    assert result["exact/lambda"] > 0
    assert result["exact/expected_cost"] == pytest.approx(limit, abs=1e-8)
    for who, model in (("reference", reference), ("sft", reference), ("cdpo", policy)):
        share = inference.logp(model, problem.rows).view(2, 4).softmax(1)
        cost = float((share * problem.scores["cost"]).sum(1).mean())
        truth = float((share * problem.truth["cost"]).sum(1).mean())
        assert result[f"exact/{who}/expected_cost"] == pytest.approx(cost, abs=1e-6)
        assert result[f"truth/{who}/expected_cost"] == pytest.approx(truth, abs=1e-6)
    assert result["exact/reference/expected_cost"] == pytest.approx(result["exact/reference_expected_cost"], abs=1e-6)
    assert result["exact/cdpo/kl_to_optimum"] > 0


def test_the_frontier_is_a_table_from_lambda_zero_to_beyond_the_optimum(problem, inference, tmp_path, files):
    """Truth: at each lambda the expectations under pi_ref exp((r - lambda c) / beta), in plain sums."""
    evaluate_exactly(problem, [], inference, tmp_path)
    rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(files("frontier.csv"))]
    assert len(rows) == 60
    assert rows[0].keys() == {"lambda", "expected_cost", "expected_reward"}
    assert rows[0]["lambda"] == 0
    assert rows[-1]["lambda"] > problem.solve()["cost"]
    reward, cost = problem.scores["reward"], problem.scores["cost"]
    for row in rows[::20]:
        share = (problem.reference_logp + (reward - row["lambda"] * cost) / 0.5).softmax(1)
        assert row["expected_cost"] == pytest.approx(float((share * cost).sum(1).mean()), abs=1e-9)
        assert row["expected_reward"] == pytest.approx(float((share * reward).sum(1).mean()), abs=1e-9)
