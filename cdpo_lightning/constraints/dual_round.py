"""One round of the dual loop: measure every constraint on a policy's samples, update the multipliers, raise alarms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cdpo_lightning.constraints.constraint import Constraint, DualState, Scores
from cdpo_lightning.constraints.updates import Step, Update
from cdpo_lightning.maths import dual as dual_maths
from cdpo_lightning.maths.statistics import Estimate, clustered_mean, within_cluster_covariance

HistoryRow = dict[str, Any]  # one row of history.csv
Feedback = Callable[[Tensor, int], Tensor]  # from phi [N] and a seed to the values [N] that an oracle reports of it

# The keys of the constraint `cost`, as they were before there were several: old name -> new name behind `dual/cost/`.
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
    """Responses of a policy [N]: their scores by name, and the number of each one's prompt among all prompts of the run."""

    @property
    def scores(self) -> Scores:
        """Scores by name, each [N]."""
        ...

    @property
    def prompt(self) -> Tensor:
        """Numbers of prompts, [N]; equal numbers are one cluster."""
        ...


def exact_feedback(phi: Tensor, seed: int) -> Tensor:
    """Return phi itself: the constraint is measured by its scores."""
    return phi


@dataclass(frozen=True)
class Oracle:
    """Who reports phi of a sample: the scores themselves, or an oracle with random answers, which belong to the seed."""

    report: Feedback
    seed: int = 0


EXACT = Oracle(exact_feedback)


def estimate(constraint: Constraint, dual: DualState, samples: Samples, oracle: Oracle = EXACT) -> Estimate:
    """Return the measure of a constraint on the samples, with an error clustered by prompt, in the measure's unit.

    Raises:
        NumericsError: there is no sample of the constraint's group, or a score is not finite.
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
    """Return the state after one round and the row of history.csv that describes it.

    Args:
        samples: the policy's own responses with their scores.
        constraints: all that are measured.
        dual: the state before the round.
        update: how the multipliers move; None: they stay.
        beta: KL weight, reward units per nat.
        lowest: mean over prompts of the smallest phi seen, by constraint; needed to recognise an infeasible limit.
        oracle: what is reported in place of phi.
        values: measures for the update where they are not those of these samples (the window of [SafeRLHF]).

    Raises:
        NumericsError: a number that the multipliers depend on is not finite.
    """
    estimates = {c.name: estimate(c, dual, samples, oracle) for c in constraints}
    told = {name: one.mean for name, one in estimates.items()} | dict(values or {})
    lam, memory = _updated(samples, constraints, dual, update, beta, told)
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
    values: Mapping[str, float],
) -> tuple[Mapping[str, float], Mapping[str, Any]]:
    """Return lambda and the update's memory after the step, by constraint name."""
    if update is None:
        return dual.lam, dual.update_memory
    names = [c.name for c in constraints]
    phi = [c.weighted(dual.phi(c, samples.scores[c.score]), samples.prompt) for c in constraints]
    lam, memory = update(
        Step(
            lam=[dual.lam[name] for name in names],
            violation=[values[c.name] - c.limit for c in constraints],
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
    highest = getattr(update, "lam_max", float("inf"))
    smallest = (lowest or {}).get(constraint.name)
    return dual_maths.alarm(lam, highest, value.mean - constraint.limit, value.se, smallest, constraint.limit)


def _history_row(constraints: Sequence[Constraint], before: DualState, after: DualState) -> HistoryRow:
    """Return `round` and `dual/<constraint>/*`: the multiplier that the samples were drawn under, and the next one."""
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
    """Return the values and, of the constraint `cost`, the same under the keys that it had when it was the only one."""
    former = {old: values[key] for old, name in FORMER_KEYS.items() if (key := f"dual/cost/{name}") in values}
    return {**values, **former}


def dual_metrics(constraints: Sequence[Constraint], dual: DualState, start: Mapping[str, float]) -> dict[str, Any]:
    """Return `dual/<constraint>/*` of the last round, with the former keys of `cost`; after no round, lambda alone."""
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
