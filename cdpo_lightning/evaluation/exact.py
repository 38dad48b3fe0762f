"""The exact optimum of the closed-form world and the exact values of any policy, by enumeration of all responses.

Shape legend: P prompts, K responses to each, C constraints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from cdpo_lightning.constraints.constraint import REWARD, Constraint, DualState, Scores, utility, weighted_phi
from cdpo_lightning.data.world.closed_form import World
from cdpo_lightning.maths import closed_form
from cdpo_lightning.maths.multipliers import solve_multipliers
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.scorers.scorer import Text
from cdpo_lightning.text.packing import Ids, TokenRow

_RESPONSES_PER_ROW = 8
Multipliers = Mapping[str, float]  # lambda by constraint name


def all_texts(world: World) -> list[Text]:
    """Return every (prompt, response) of the grammar, prompt by prompt."""
    return [(prompt, response) for prompt in world.prompts for response in world.responses]


def all_rows(prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[TokenRow]:
    """Return rows that hold every response to every prompt, prompt by prompt, a few responses in each row."""
    parts = [list(responses[i : i + _RESPONSES_PER_ROW]) for i in range(0, len(responses), _RESPONSES_PER_ROW)]
    return [(prompt, part) for prompt in prompts for part in parts]


@dataclass(frozen=True)
class ExactProblem:
    """The constrained problem with all responses enumerated; tensors have shape [P, K]."""

    reference_logp: Tensor  # of the model, nats; not normalised over the K responses
    scores: Scores  # that the methods use
    truth: Scores  # the world's true scores; they differ from `scores` if score models are trained
    constraints: Sequence[Constraint]
    beta: float
    rows: list[TokenRow]

    @property
    def reference(self) -> Tensor:
        """log pi_ref normalised over the grammar's responses, nats, [P, K]."""
        return closed_form.normalise(self.reference_logp)

    @property
    def limits(self) -> list[float]:
        """The limit of every constraint, in the unit of its measure."""
        return [c.limit for c in self.constraints]

    @cached_property
    def costs(self) -> Tensor:
        """phi of every constraint, weighted by 1[x in G] / P(G), [C, P, K]."""
        prompt = torch.arange(len(self.reference_logp))[:, None]
        dual = DualState(lam={})
        return torch.stack([weighted_phi(self.scores, c, dual, prompt) for c in self.constraints])

    def optimum(self, lam: Multipliers) -> Tensor:
        """Return log pi*_lambda, normalised over the grammar's responses, nats, [P, K]."""
        prompt = torch.arange(len(self.reference_logp))[:, None]
        return closed_form.optimal_policy(
            self.reference, utility(self.scores, self.constraints, DualState(lam=lam), prompt), self.beta
        )

    @cached_property
    def _solution(self) -> list[float]:
        reward, costs = self.scores[REWARD], self.costs
        if len(costs) == 1:
            return [closed_form.solve_lambda(self.reference, reward, costs[0], self.beta, self.limits[0])]
        return solve_multipliers(self.reference, reward, costs, self.beta, torch.tensor(self.limits, dtype=torch.float64)).tolist()

    def solve(self) -> dict[str, float] | None:
        """Return lambda* by constraint name; None if no policy meets the limits."""
        if any(math.isinf(one) for one in self._solution):
            return None
        return {c.name: one for c, one in zip(self.constraints, self._solution, strict=True)}

    def metrics(self) -> dict[str, float]:
        """Return `exact/*`: the values of the optimum, and those between which each limit binds."""
        lam = self.solve()
        free = self.optimum(dict.fromkeys([c.name for c in self.constraints], 0.0))
        metrics: dict[str, float] = {}
        for c, cost in zip(self.constraints, self.costs, strict=True):
            metrics |= {
                f"exact/{c.name}/unconstrained": closed_form.expectation(free, cost),
                f"exact/{c.name}/reachable_min": closed_form.reachable_cost_min(cost),
                f"exact/{c.name}/reference": closed_form.expectation(self.reference, cost),
            }
        if lam is None:
            return _with_former_keys(metrics)
        best, reward = self.optimum(lam), self.scores[REWARD]
        for c, cost in zip(self.constraints, self.costs, strict=True):
            metrics |= {f"exact/{c.name}/lambda": lam[c.name], f"exact/{c.name}/value": closed_form.expectation(best, cost)}
        lambda_limit = sum(lam[c.name] * c.limit for c in self.constraints)
        weighted = closed_form.lagrangian_utility(reward, self.costs, self._solution)
        metrics["exact/expected_reward"] = closed_form.expectation(best, reward)
        metrics["exact/dual_value"] = closed_form.dual_value(self.reference, weighted, self.beta, lambda_limit)
        return _with_former_keys(metrics)

    def policy_logp(self, policy: nn.Module, batch_size: int, precision: str) -> Tensor:
        """Return log pi of every response, nats, [P, K], not normalised over the grammar's responses."""
        return response_logp_of_rows(policy, self.rows, batch_size, precision).view(self.reference_logp.shape)

    def policy_metrics(self, who: str, raw_logp: Tensor) -> dict[str, float]:
        """Return `exact/<who>/*` and `truth/<who>/*` of a policy with these log-probabilities (see `policy_logp`)."""
        logp, reward, costs = closed_form.normalise(raw_logp), self.scores[REWARD], self.costs
        metrics = {
            f"exact/{who}/expected_reward": closed_form.expectation(logp, reward),
            f"exact/{who}/support_mass": float(raw_logp.exp().sum(1).mean()),
        }
        for c, cost in zip(self.constraints, costs, strict=True):
            metrics[f"exact/{who}/{c.name}/value"] = closed_form.expectation(logp, cost)
        lam = self.solve()
        if lam is not None:
            problem = (self.reference, reward, costs, self._solution, self.limits, self.beta)
            metrics[f"exact/{who}/kl_to_optimum"] = closed_form.kl_divergence(logp, self.optimum(lam))
            metrics[f"exact/{who}/duality_gap"] = closed_form.duality_gap(logp, *problem)
        metrics |= {f"truth/{who}/expected_{name}": closed_form.expectation(logp, score) for name, score in self.truth.items()}
        return _with_former_keys(metrics, who)

    def frontier(self, points: int = 60) -> list[dict[str, float]]:
        """Return the exact curve lambda -> (E[c], E[r]) of pi*_lambda, from lambda = 0 to well past lambda*.

        With several constraints the multipliers keep the ratios of lambda*.
        """
        names = [c.name for c in self.constraints]
        solution = self.solve()
        highest = max(solution.values()) if solution is not None else 10.0
        top = 3 * max(1.0, highest)
        shares = {name: solution[name] / highest if solution is not None and highest > 0 else 1.0 for name in names}
        curve = []
        for value in torch.linspace(0, top, points).tolist():
            best = self.optimum({name: value * share for name, share in shares.items()})
            expected = {"expected_cost": self.costs[0], "expected_reward": self.scores[REWARD]}
            curve.append({"lambda": value} | {k: closed_form.expectation(best, v) for k, v in expected.items()})
        return curve


_FORMER_KEYS = {
    "exact/lambda": "exact/cost/lambda",
    "exact/expected_cost": "exact/cost/value",
    "exact/unconstrained_expected_cost": "exact/cost/unconstrained",
    "exact/reachable_cost_min": "exact/cost/reachable_min",
    "exact/reference_expected_cost": "exact/cost/reference",
}


def _with_former_keys(metrics: dict[str, float], who: str = "") -> dict[str, float]:
    """Return the metrics, those of the constraint `cost` also under their former keys (`_FORMER_KEYS`)."""
    former = {f"exact/{who}/expected_cost": f"exact/{who}/cost/value"} if who else _FORMER_KEYS
    return metrics | {old: metrics[new] for old, new in former.items() if new in metrics}
