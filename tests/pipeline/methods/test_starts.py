"""The multipliers before training, with one constraint and with three, and the reference responses of the anchor."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cdpo_lightning.config import ConstraintConfig, PolicyConfig
from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.maths.multipliers import solve_multipliers
from cdpo_lightning.pipeline.compute_budget import ComputeBudget
from cdpo_lightning.pipeline.methods.starts import anchor_table, reference_samples, start_lambda
from cdpo_lightning.streams import Stream, stream_seed

BETA, PROMPTS, COUNT = 0.7, 3, 6
GROUP = torch.tensor([True, False, True])
GENERATOR = torch.Generator().manual_seed(5)
SCORES = {
    name: torch.randn(PROMPTS, COUNT, generator=GENERATOR, dtype=torch.float64) for name in ("reward", "cost", "toxic", "kind")
}
NAMES = ("cost", "toxic", "risky")  # the last is of the score `kind`, over the group
LIMITS = (-0.4, -0.1, -0.3)


def three(limits=LIMITS):
    scores, groups = ("cost", "toxic", "kind"), (None, None, GROUP)
    return tuple(
        Constraint(name, score, Mean(), limit, group)
        for name, score, limit, group in zip(NAMES, scores, limits, groups, strict=True)
    )


def one(limit):
    return (Constraint("cost", "cost", Mean(), limit),)


def constraint(kind="dual", start="one_shot", **changes):
    return ConstraintConfig(kind=kind, lambda_init=start, one_shot_samples=COUNT, samples_per_prompt=2, **changes)


@pytest.fixture
def inputs(method_inputs, stub_evaluator, measurement):
    """Inputs whose evaluator always measures `SCORES`."""

    def make(constraints, **options):
        evaluator = stub_evaluator(measurement(SCORES), reference="pi_ref", scorers=SCORES)
        return method_inputs(evaluator, constraints, prompts=[f"p{i}" for i in range(PROMPTS)], **options)

    return make


def reweighted(lam):
    """E of the three costs of the samples weighted by exp(u / beta) within each prompt, in plain sums; the last over the group."""
    in_group = GROUP[:, None] / GROUP.double().mean()
    phi = {"cost": SCORES["cost"], "toxic": SCORES["toxic"], "risky": SCORES["kind"] * in_group}
    weight = ((SCORES["reward"] - sum(lam[name] * phi[name] for name in lam)) / BETA).exp()
    share = weight / weight.sum(1, keepdim=True)
    per_prompt = {"cost": SCORES["cost"], "toxic": SCORES["toxic"], "risky": SCORES["kind"]}
    sums = {name: (share * value).sum(1) for name, value in per_prompt.items()}
    return {"cost": float(sums["cost"].mean()), "toxic": float(sums["toxic"].mean()), "risky": float(sums["risky"][GROUP].mean())}


# Nothing is sampled


@pytest.mark.parametrize("constraints", [one(-0.5), three()], ids=["one", "three"])
def test_without_a_constraint_every_multiplier_is_zero(inputs, constraints, screen):
    given = inputs(constraints)
    lam, compute = start_lambda(given, constraint("none"), BETA, screen)
    assert lam == {c.name: 0.0 for c in constraints}
    assert (compute, given.evaluator.calls) == (ComputeBudget(), [])


@pytest.mark.parametrize("constraints", [one(-0.5), three()], ids=["one", "three"])
@pytest.mark.parametrize("kind", ["dual", "fixed"])
def test_a_number_is_the_start_of_every_multiplier(inputs, constraints, kind, screen):
    given = inputs(constraints)
    lam, compute = start_lambda(given, constraint(kind, 2.5), BETA, screen)
    assert lam == {c.name: 2.5 for c in constraints}
    assert (compute, given.evaluator.calls) == (ComputeBudget(), [])


def test_the_exact_multipliers_are_those_of_the_enumerated_problem(inputs, screen):
    exact = SimpleNamespace(solve=lambda: {"cost": 0.3, "toxic": 0.0, "risky": 1.5})
    lam, compute = start_lambda(inputs(three(), exact=exact), constraint(start="exact"), BETA, screen)
    assert lam == {"cost": 0.3, "toxic": 0.0, "risky": 1.5}
    assert compute == ComputeBudget()


def test_without_a_feasible_policy_there_are_no_exact_multipliers(inputs, screen):
    infeasible = SimpleNamespace(solve=lambda: None)
    with pytest.raises(ConfigError, match=r"^constraint.c_limit=-7(\.0)?: .*give a number"):
        start_lambda(inputs(one(-7.0), exact=infeasible), constraint(start="exact"), BETA, screen)


# One shot


def test_one_shot_is_the_root_on_samples_of_the_reference(inputs, screen):
    """At the root the reweighted samples meet the limit exactly; a limit that holds already has lambda 0."""
    lam, _ = start_lambda(inputs(one(-0.4)), constraint(), BETA, screen)
    assert lam["cost"] > 0
    assert reweighted(lam)["cost"] == pytest.approx(-0.4, abs=1e-8)
    slack, _ = start_lambda(inputs(one(9.0)), constraint(), BETA, screen)
    assert slack == {"cost": 0.0}


def test_one_shot_ends_at_the_largest_multiplier(inputs, screen):
    """No weights of these samples meet the limit."""
    lam, _ = start_lambda(inputs(one(-9.0)), constraint(lambda_max=3.0), BETA, screen)
    assert lam == {"cost": 3.0}
    several, _ = start_lambda(inputs(three((-9.0, 9.0, 9.0))), constraint(lambda_max=3.0), BETA, screen)
    assert several == dict.fromkeys(NAMES, 3.0)


def test_one_shot_of_three_constraints_solves_the_problem_on_the_samples(inputs, screen):
    lam, _ = start_lambda(inputs(three()), constraint(), BETA, screen)
    in_group = GROUP[:, None] / GROUP.double().mean()
    costs = torch.stack([SCORES["cost"], SCORES["toxic"], SCORES["kind"] * in_group])
    expected = solve_multipliers(
        torch.zeros(PROMPTS, COUNT), SCORES["reward"], costs, BETA, torch.tensor(LIMITS, dtype=torch.float64)
    )
    assert list(lam) == list(NAMES)
    assert list(lam.values()) == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize("limits", [LIMITS, (-0.4, 9.0, -0.3), (9.0, 9.0, 9.0)], ids=["tight", "one slack", "all slack"])
def test_one_shot_of_three_constraints_satisfies_the_conditions_of_karush_kuhn_and_tucker(inputs, limits, screen):
    lam, _ = start_lambda(inputs(three(limits)), constraint(), BETA, screen)
    values = reweighted(lam)
    for name, limit in zip(NAMES, limits, strict=True):
        assert lam[name] >= 0
        assert values[name] <= limit + 1e-8
        assert lam[name] * (values[name] - limit) == pytest.approx(0, abs=1e-7)
    assert any(value > 0.01 for value in lam.values()) == (limits != (9.0, 9.0, 9.0))


def test_one_shot_takes_the_samples_and_tells_how_many_are_effective(inputs, screen):
    """3 x 6 samples of three tokens, all texts different, read by four scorers."""
    given = inputs(three())
    _, compute = start_lambda(given, constraint(), BETA, screen)
    assert compute == ComputeBudget(sampled_tokens=54, scorer_forwards=4 * 18)
    assert given.evaluator.calls == [("pi_ref", ["p0", "p1", "p2"], COUNT, stream_seed(0, Stream.DUAL_SAMPLES, 0), None)]
    (line,) = screen.lines
    assert "one-shot lambda" in line
    assert f"of {COUNT} a prompt" in line


def test_few_effective_samples_are_warned_of(method_inputs, stub_evaluator, measurement, screen):
    """One of 32 samples has all the weight: 1 of 32 is below a tenth."""
    reward = torch.zeros(1, 32)
    reward[0, 3] = 100.0
    evaluator = stub_evaluator(measurement({"reward": reward, "cost": torch.zeros(1, 32)}), reference="pi_ref")
    config = replace(constraint(), one_shot_samples=32)
    start_lambda(method_inputs(evaluator, one(9.0), prompts=["p"]), config, BETA, screen)
    assert "effective samples 1.0 of 32" in screen.text
    assert "raise one_shot_samples" in screen.text


# Samples of the reference


def test_samples_of_the_reference_belong_to_the_seed(inputs):
    given = inputs(one(0.0))
    for seed in (0, 1):
        reference_samples(replace(given, settings=replace(given.settings, seed=seed)), 4)
    seeds = [call[3] for call in given.evaluator.calls]
    assert seeds == [stream_seed(0, Stream.DUAL_SAMPLES, 0), stream_seed(1, Stream.DUAL_SAMPLES, 0)]
    assert seeds[0] != seeds[1]


def test_without_an_anchor_nothing_is_sampled(inputs):
    given = inputs(one(0.0))
    assert anchor_table(given, PolicyConfig(anchor=0.0)) == (None, ComputeBudget())
    assert not given.evaluator.calls


def test_the_anchor_holds_the_samples_with_all_their_scores_and_no_pairs(inputs):
    given = inputs(three())
    table, compute = anchor_table(given, PolicyConfig(anchor=0.1, anchor_responses=COUNT))
    measured = given.evaluator.measured
    assert given.evaluator.calls[0][2] == COUNT
    assert table.prompts == given.pairs.table.prompts
    assert table.responses == tuple(sample.tokens for sample in measured.samples)
    assert table.prompt_N.tolist() == [p for p in range(PROMPTS) for _ in range(COUNT)]
    assert {name: score.tolist() for name, score in table.scores.items()} == {
        name: score.flatten().tolist() for name, score in SCORES.items()
    }
    assert table.reference_logp_N.tolist() == measured.reference_logp.tolist()
    assert len(table) == 0
    assert compute == ComputeBudget(sampled_tokens=54, scorer_forwards=4 * 18)
