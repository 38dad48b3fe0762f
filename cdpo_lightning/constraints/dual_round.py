"""One round of the dual loop: measure every constraint on a policy's samples, update the multipliers, raise alarms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cdpo_lightning.constraints.constraint import Constraint, DualState, Scores, weighted_phi
from cdpo_lightning.constraints.updates import Step, Update
from cdpo_lightning.maths import dual as dual_maths
from cdpo_lightning.maths.statistics import Estimate, clustered_mean, within_cluster_covariance

HistoryRow = dict[str, Any]  # one row of history.csv
Feedback = Callable[[Tensor, int], Tensor]  # (phi [N], seed) -> the values [N] that an oracle reports in place of phi

# Keys from the time when `cost` was the only constraint -> their names behind `dual/cost/`. Both are written.
FORMER_KEYS = {
    "dual/lambda": "lambda",
    "dual/lambda_next": "lambda_next",
    "dual/lambda_start": "lambda_start",
    "dual/expected_cost": "measured",
    "dual/expected_cost_se": "measured_se",
    "dual/violation": "violation",
    "dual/c_limit": "limit",
    "dual/alarm": "alarm",
}


class Samples(Protocol):
    """N responses of a policy, with their scores and the numbers of their prompts among all prompts of the run."""

    @property
    def scores(self) -> Scores:
        """Scores by name, each [N]."""
        ...

    @property
    def prompt(self) -> Tensor:
        """Number of each response's prompt, [N]; responses with equal numbers are one cluster."""
        ...


def exact_feedback(phi: Tensor, seed: int) -> Tensor:
    """Return phi itself: the constraint is measured on the scores."""
    return phi


@dataclass(frozen=True)
class Oracle:
    """The source of the values that a constraint is measured on: phi itself, or an oracle that answers at random."""

    report: Feedback
    seed: int = 0  # of the random answers


EXACT = Oracle(exact_feedback)


def estimate(constraint: Constraint, dual: DualState, samples: Samples, oracle: Oracle = EXACT) -> Estimate:
    """Return the estimate of a constraint's measure, in the measure's unit; its standard error is clustered by prompt.

    Raises:
        NumericsError: no sample belongs to the constraint's group, or a score is not finite.
    """
    covered = constraint.covers(samples.prompt)
    phi = dual.phi(constraint, samples.scores[constraint.score])[covered]
    mean = clustered_mean(oracle.report(phi, oracle.seed), samples.prompt[covered])
    offset = constraint.measure.offset(dual.measure_memory.get(constraint.name, {}))
    return mean if offset == 0.0 else replace(mean, mean=mean.mean + offset, low=mean.low + offset, high=mean.high + offset)


def dual_round(
    samples: Samples,
    constraints: Sequence[Constraint],
    dual: DualState,
    update: Update | None,
    beta: float,
    *,
    lowest: Mapping[str, float] | None = None,
    oracle: Oracle = EXACT,
    values: Mapping[str, float] | None = None,
) -> tuple[DualState, HistoryRow]:
    """Return the state after one round, and the round's row of history.csv.

    Args:
        samples: the policy's own responses with their scores.
        constraints: the constraints to measure.
        dual: the state before the round.
        update: the rule that updates the multipliers; None: they stay.
        beta: KL weight, reward units per nat.
        lowest: mean over prompts of the smallest phi seen, by constraint; without it no limit is recognised as infeasible.
        oracle: the source of the values that are averaged in place of phi.
        values: measures for the update, by constraint, in place of those of the samples (the window of [SafeRLHF]).

    Raises:
        NumericsError: a number that the multipliers depend on is not finite.
    """
    estimates = {c.name: estimate(c, dual, samples, oracle) for c in constraints}
    measures = {name: one.mean for name, one in estimates.items()} | dict(values or {})
    lam, memory = _updated(samples, constraints, dual, update, beta, measures)
    after = replace(
        dual,
        lam=lam,
        update_memory=memory,
        measure_memory={c.name: _remembered(c, dual, samples) for c in constraints},
        round=dual.round + 1,
        lowest={**dual.lowest, **(lowest or {})},
        measured={name: one.mean for name, one in estimates.items()},
        measured_se={name: one.se for name, one in estimates.items()},
        alarm={c.name: _alarm(c, lam[c.name], update, estimates[c.name], lowest) for c in constraints},
    )
    return after, _history_row(constraints, dual, after)


def _updated(
    samples: Samples,
    constraints: Sequence[Constraint],
    dual: DualState,
    update: Update | None,
    beta: float,
    measures: Mapping[str, float],
) -> tuple[Mapping[str, float], Mapping[str, Any]]:
    """Return the multipliers and the update's memory after the step, by constraint name."""
    if update is None:
        return dual.lam, dual.update_memory
    names = [c.name for c in constraints]
    phi = [weighted_phi(samples.scores, c, dual, samples.prompt) for c in constraints]
    lam, memory = update(
        Step(
            lam=[dual.lam[name] for name in names],
            violation=[measures[c.name] - c.limit for c in constraints],
            covariance=within_cluster_covariance(torch.stack(phi), samples.prompt),
            beta=beta,
            memory=[dual.update_memory.get(name, {}) for name in names],
        )
    )
    return dict(zip(names, lam, strict=True)), dict(zip(names, memory, strict=True))


def _remembered(constraint: Constraint, dual: DualState, samples: Samples) -> Mapping[str, float]:
    memory = dual.measure_memory.get(constraint.name, {})
    covered = constraint.covers(samples.prompt)
    return constraint.measure.remember(samples.scores[constraint.score][covered], constraint.limit, memory)


def _alarm(constraint: Constraint, lam: float, update: Update | None, value: Estimate, lowest: Mapping[str, float] | None) -> str:
    """Return the alarm of a constraint after its update; `none` where lambda is not updated."""
    if update is None:
        return "none"
    smallest = (lowest or {}).get(constraint.name)
    return dual_maths.alarm(lam, update.lam_max, value.mean - constraint.limit, value.se, smallest, constraint.limit)


def _history_row(constraints: Sequence[Constraint], before: DualState, after: DualState) -> HistoryRow:
    """Return `round` and `dual/<constraint>/*`; `lambda` is the multiplier before the update, `lambda_next` the one after it."""
    row: HistoryRow = {"round": after.round}
    for c in constraints:
        row |= {
            f"dual/{c.name}/lambda": before.lam[c.name],
            f"dual/{c.name}/lambda_next": after.lam[c.name],
            f"dual/{c.name}/measured": after.measured[c.name],
            f"dual/{c.name}/measured_se": after.measured_se[c.name],
            f"dual/{c.name}/violation": after.measured[c.name] - c.limit,
            f"dual/{c.name}/limit": c.limit,
        }
    return with_former_keys(row)


def with_former_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, those of the constraint `cost` also under their former keys (`FORMER_KEYS`)."""
    former = {old: values[key] for old, name in FORMER_KEYS.items() if (key := f"dual/cost/{name}") in values}
    return {**values, **former}


def dual_metrics(constraints: Sequence[Constraint], dual: DualState, start: Mapping[str, float]) -> dict[str, Any]:
    """Return `dual/<constraint>/*` of the last round, for `cost` also under its former keys; without a round only lambda and limit.

    `start` has the multipliers before the first round.
    """
    metrics: dict[str, Any] = {}
    for c in constraints:
        metrics |= {f"dual/{c.name}/lambda": dual.lam[c.name], f"dual/{c.name}/lambda_start": start[c.name]}
        metrics[f"dual/{c.name}/limit"] = c.limit
        if dual.round:
            metrics |= {
                f"dual/{c.name}/measured": dual.measured[c.name],
                f"dual/{c.name}/measured_se": dual.measured_se[c.name],
                f"dual/{c.name}/alarm": dual.alarm[c.name],
            }
    return with_former_keys(metrics) | ({"dual/rounds": dual.round} if dual.round else {})
