"""The exact problem: a policy that is the optimum is at distance 0, whatever mass it leaks; one that is not, is not."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cdpo_lightning.config import ClosedFormConfig
from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.world.closed_form import make_world
from cdpo_lightning.evaluation.exact import ExactProblem, all_rows, all_texts

BETA, EOS, LEAK, VOCABULARY = 0.5, 0, 9, 10
PROMPTS = [(1,), (2, 1), (3,)]
RESPONSES = [[a, b, EOS] for a in (4, 5, 6) for b in (4, 5, 6, 7)]  # 12: more than a row holds
SHAPE = (len(PROMPTS), len(RESPONSES))


class Tabular(nn.Module):
    """A policy given by its log-probabilities [P, K]; a `mass` below 1 goes into a token that no response has.

    It finds what a position may look at in the mask alone, so it reads packed rows as it would read each response by itself.
    """

    def __init__(self, logp, mass=1.0):
        super().__init__()
        self.head = nn.Linear(VOCABULARY, VOCABULARY, bias=False, dtype=torch.float64)
        nn.init.eye_(self.head.weight)
        self.next = {}
        for p, prompt in enumerate(PROMPTS):
            for k, response in enumerate(RESPONSES):
                for i, token in enumerate(response):
                    weight = self.next.setdefault((*prompt, *response[:i]), [0.0] * VOCABULARY)
                    weight[token] += float(logp[p, k].exp())
            first = self.next[prompt]
            self.next[prompt] = [w * mass for w in first]
            self.next[prompt][LEAK] = sum(first) * (1 - mass)

    def base_model(self, input_ids, attention_mask, **_):
        states = [
            [self.next.get(tuple(ids[look].tolist()), [1.0] * VOCABULARY) for look in mask[0]]
            for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        return SimpleNamespace(last_hidden_state=torch.tensor(states, dtype=torch.float64).clamp(min=1e-300).log())

    def get_output_embeddings(self):
        return self.head


def random_problem(c_limit=-0.3, reference_mass=0.9):
    generator = torch.Generator().manual_seed(4)
    reference, reward, cost, noise = (torch.randn(SHAPE, generator=generator).double() for _ in range(4))
    return ExactProblem(
        reference_logp=reference.log_softmax(1) + math.log(reference_mass),
        scores={"reward": reward, "cost": cost + 0.5 * reward},
        truth={"reward": reward + noise, "cost": cost - noise},
        constraints=(Constraint("cost", "cost", Mean(), c_limit),),
        beta=BETA,
        rows=all_rows(PROMPTS, RESPONSES),
    )


def metrics_of(problem, logp, mass=1.0):
    result = problem.policy_metrics("x", problem.policy_logp(Tabular(logp, mass), 2, "32-true"))
    return {name.replace("/x/", "/"): value for name, value in result.items()}


def by_hand(problem, lam):
    """Expected cost, reward, true cost and true reward of pi_ref exp((r - lam c)/beta) / Z, in plain sums."""
    reward, cost = problem.scores["reward"], problem.scores["cost"]
    weight = problem.reference_logp.exp() * ((reward - lam * cost) / BETA).exp()
    share = weight / weight.sum(1, keepdim=True)
    values = (cost, reward, problem.truth["cost"], problem.truth["reward"])
    return [float((share * value).sum() / len(PROMPTS)) for value in values]


@pytest.mark.parametrize("mass", [1.0, 0.6])
def test_the_optimum_is_at_distance_zero(mass):
    problem = random_problem()
    result = metrics_of(problem, problem.optimum(problem.solve()), mass)
    assert result["exact/kl_to_optimum"] == pytest.approx(0, abs=1e-10)
    assert result["exact/duality_gap"] == pytest.approx(0, abs=1e-10)
    assert result["exact/expected_cost"] == pytest.approx(problem.limits[0], abs=1e-8)
    assert result["exact/support_mass"] == pytest.approx(mass)


def test_values_of_a_policy_are_plain_sums():
    problem = random_problem()
    result = metrics_of(problem, problem.optimum({"cost": 0.7}), mass=0.5)
    names = ("exact/expected_cost", "exact/expected_reward", "truth/expected_cost", "truth/expected_reward")
    assert [result[name] for name in names] == pytest.approx(by_hand(problem, 0.7), abs=1e-10)


def test_the_gap_is_beta_times_the_kl_and_positive_away_from_the_optimum():
    problem = random_problem()
    best = problem.optimum(problem.solve())
    for logp in (problem.reference, problem.optimum({"cost": 0.0})):
        result = metrics_of(problem, logp)
        kl = float((logp.exp() * (logp - best)).sum(1).mean())
        assert result["exact/kl_to_optimum"] == pytest.approx(kl, abs=1e-10)
        assert result["exact/duality_gap"] == pytest.approx(BETA * kl, abs=1e-9)
        assert kl > 0.01


def test_metrics_of_the_optimum():
    problem = random_problem()
    result = problem.metrics()
    cost, reward, *_ = by_hand(problem, result["exact/lambda"])
    assert result["exact/expected_cost"] == pytest.approx(cost, abs=1e-10)
    assert cost == pytest.approx(problem.limits[0], abs=1e-8)
    assert result["exact/expected_reward"] == pytest.approx(reward, abs=1e-10)
    assert result["exact/unconstrained_expected_cost"] == pytest.approx(by_hand(problem, 0.0)[0], abs=1e-10)
    assert result["exact/reachable_cost_min"] == pytest.approx(float(problem.scores["cost"].min(1).values.mean()))
    share = problem.reference_logp.exp() / problem.reference_logp.exp().sum(1, keepdim=True)
    assert result["exact/reference_expected_cost"] == pytest.approx(float((share * problem.scores["cost"]).sum(1).mean()))


def test_strong_duality():
    """The dual's minimum is the reward of the optimum less its KL: J_r(pi*), for the limit holds with equality."""
    problem = random_problem()
    best = problem.optimum(problem.solve())
    kl = float((best.exp() * (best - problem.reference)).sum(1).mean())
    result = problem.metrics()
    assert result["exact/dual_value"] == pytest.approx(result["exact/expected_reward"] - BETA * kl, abs=1e-8)


def test_a_slack_limit_costs_nothing():
    result = random_problem(c_limit=50.0).metrics()
    assert result["exact/lambda"] == 0
    assert result["exact/expected_cost"] == result["exact/unconstrained_expected_cost"]


def test_without_a_feasible_policy_there_is_no_optimum_to_compare_with():
    """A missing key means not measured."""
    problem = random_problem(c_limit=-50.0)
    assert problem.solve() is None
    assert problem.metrics().keys() == {
        "exact/unconstrained_expected_cost", "exact/reachable_cost_min", "exact/reference_expected_cost",
        "exact/cost/unconstrained", "exact/cost/reachable_min", "exact/cost/reference",
    }  # fmt: skip
    result = metrics_of(problem, problem.reference)
    assert result.keys() == {
        "exact/expected_cost", "exact/cost/value", "exact/expected_reward", "exact/support_mass",
        "truth/expected_cost", "truth/expected_reward",
    }  # fmt: skip
    assert all(math.isfinite(row["expected_cost"]) for row in problem.frontier())


def test_the_frontier_begins_unconstrained_and_passes_the_optimum():
    problem = random_problem()
    rows = problem.frontier(points=200)
    lams, costs = [row["lambda"] for row in rows], [row["expected_cost"] for row in rows]
    assert lams[0] == 0
    assert lams[-1] > problem.solve()["cost"]
    assert [costs[0], rows[0]["expected_reward"]] == pytest.approx(by_hand(problem, 0.0)[:2], abs=1e-10)
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > problem.limits[0] > costs[-1]


def test_rows_and_texts_are_in_the_same_order():
    world = make_world(ClosedFormConfig(prompts=8, responses=16), seed=0)
    texts = all_texts(world)
    numbers = {response: [number] for number, response in enumerate(world.responses)}
    rows = all_rows([(p,) for p in range(8)], [numbers[r] for r in world.responses])
    flat = [(world.prompts[prompt[0]], world.responses[y[0]]) for prompt, part in rows for y in part]
    assert flat == texts
    assert len(texts) == 8 * 16
    assert max(len(part) for _, part in rows) == 8
