"""The closed-form world's optimum and any policy's true values, by enumeration of all responses. Shapes: [P, K]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdpo_lightning.data.world.closed_form import World
from cdpo_lightning.evaluation.evaluator import Text, logp_of
from cdpo_lightning.maths import closed_form
from cdpo_lightning.text.packing import Ids, Row

_RESPONSES_PER_ROW = 8


def all_texts(world: World) -> list[Text]:
    """Every (prompt, response) of the grammar, prompt by prompt."""
    return [(prompt, response) for prompt in world.prompts for response in world.responses]


def all_rows(prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[Row]:
    """Every response to every prompt as packed rows of a few responses, prompt by prompt."""
    parts = [list(responses[i : i + _RESPONSES_PER_ROW]) for i in range(0, len(responses), _RESPONSES_PER_ROW)]
    return [(prompt, part) for prompt in prompts for part in parts]


@dataclass(frozen=True)
class ExactProblem:
    """The problem as the algorithm is given it (`reward`, `cost`, `reference_logp`), and the truth beside it."""

    reference_logp: Tensor  # as the model gives them: their sum over K is the support mass
    reward: Tensor
    cost: Tensor
    true_reward: Tensor
    true_cost: Tensor
    beta: float
    c_limit: float
    rows: list[Row]

    @property
    def reference(self) -> Tensor:
        """log pi_ref restricted to the grammar."""
        return closed_form.normalise(self.reference_logp)

    def optimum(self, lam: float) -> Tensor:
        """log pi*_lam restricted to the grammar."""
        return closed_form.optimal_policy(self.reference, self.reward, self.cost, lam, self.beta)

    def solve(self) -> float:
        """lambda*; infinite if no policy meets the limit."""
        return closed_form.solve_lambda(self.reference, self.reward, self.cost, self.beta, self.c_limit)

    def metrics(self) -> dict[str, float]:
        """`exact/*`: the optimum and the range in which a limit binds."""
        lam = self.solve()
        free = self.optimum(0.0)
        result = {
            "exact/unconstrained_expected_cost": closed_form.expectation(free, self.cost),
            "exact/reachable_cost_min": closed_form.reachable_cost_min(self.cost),
            "exact/reference_expected_cost": closed_form.expectation(self.reference, self.cost),
        }
        if math.isinf(lam):
            return result
        best = self.optimum(lam)
        return result | {
            "exact/lambda": lam,
            "exact/expected_cost": closed_form.expectation(best, self.cost),
            "exact/expected_reward": closed_form.expectation(best, self.reward),
            "exact/dual_value": closed_form.dual_value(self.reference, self.reward, self.cost, lam, self.beta, self.c_limit),
        }

    def evaluator(self, who: str, policy: nn.Module, batch_size: int, precision: str) -> dict[str, float]:
        """`exact/<who>/*` and `truth/<who>/*` of a trained policy."""
        shape = self.reward.shape
        raw = logp_of(policy, self.rows, batch_size, precision).view(shape)
        logp = closed_form.normalise(raw)
        result = {
            "expected_cost": closed_form.expectation(logp, self.cost),
            "expected_reward": closed_form.expectation(logp, self.reward),
            "support_mass": float(raw.exp().sum(1).mean()),
        }
        lam = self.solve()
        if math.isfinite(lam):
            problem = (self.reference, self.reward, self.cost)
            result["kl_to_optimum"] = closed_form.kl_divergence(logp, self.optimum(lam))
            result["duality_gap"] = closed_form.duality_gap(logp, *problem, self.beta, self.c_limit, lam)
        truth = {
            f"truth/{who}/expected_cost": closed_form.expectation(logp, self.true_cost),
            f"truth/{who}/expected_reward": closed_form.expectation(logp, self.true_reward),
        }
        return {f"exact/{who}/{name}": value for name, value in result.items()} | truth

    def frontier(self, points: int = 60) -> list[dict[str, float]]:
        """The exact curve lambda -> (E[c], E[r]) of pi*_lambda, from lambda = 0 to well past lambda*."""
        lam = self.solve()
        top = 3 * max(1.0, lam if math.isfinite(lam) else 10.0)
        rows = []
        for value in torch.linspace(0, top, points).tolist():
            best = self.optimum(value)
            expected = {"expected_cost": self.cost, "expected_reward": self.reward}
            rows.append({"lambda": value} | {k: closed_form.expectation(best, v) for k, v in expected.items()})
        return rows
