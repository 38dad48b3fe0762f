"""Updates of the multipliers: each is a class with its settings, registered under the value of `constraint.update`.

An update is a function of the multipliers, the violations and the covariance of the costs. It returns the new multipliers and its
memory for each constraint. To add an update, add a class here. Its fields are its settings: a setting in `KEYS` is read from that
key of the group `constraint`, any other from `constraint.update_options`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from cdpo_lightning.config import ConstraintConfig
from cdpo_lightning.constraints.measures import Memory
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.maths import dual
from cdpo_lightning.maths.multipliers import nonnegative_newton
from cdpo_lightning.registry import Registry

KEYS: Mapping[str, str] = {  # setting of an update -> key of the group `constraint`
    "lr": "lambda_lr",
    "lam_max": "lambda_max",
    "damping": "damping",
    "max_step": "max_step",
    "proportional": "proportional",
}
LOG_MINIMUM = 1e-4  # the smallest lambda of the log update, which cannot leave 0


@dataclass(frozen=True)
class Step:
    """The input of an update. The sequences have one entry for each of the C constraints, in one order."""

    lam: Sequence[float]
    violation: Sequence[float]  # measure - limit, in the measure's unit; more than 0 breaks the limit
    covariance: Tensor  # E_x Cov(phi_j, phi_k | x), [C, C]
    beta: float  # KL weight, reward units per nat; the dual's curvature is covariance / beta
    memory: Sequence[Memory]  # the update's own, for each constraint; empty before the first round


Result = tuple[list[float], list[Memory]]


class Update(Protocol):
    """A rule that updates all multipliers at once."""

    @property
    def lam_max(self) -> float:
        """The largest value of a multiplier; at it, the alarm `saturated` is raised."""
        ...

    def __call__(self, step: Step) -> Result:
        """Return the multiplier and the memory of each constraint after the step."""
        ...


UPDATES: Registry[type[Update]] = Registry("constraint.update")


@UPDATES.register("newton")
@dataclass(frozen=True)
class Newton:
    """A damped, clipped Newton step on the dual (ours); with several constraints, by non-negative least squares."""

    damping: float
    max_step: float
    lam_max: float

    def __call__(self, step: Step) -> Result:
        """Return the minimiser, over lambda >= 0, of the damped quadratic model of the dual; the memory stays empty."""
        if len(step.lam) == 1:
            settings = (step.beta, float(step.covariance), self.damping, self.max_step, self.lam_max)
            return [dual.newton_step(step.lam[0], step.violation[0], 0.0, *settings)], list(step.memory)
        lam, gradient = torch.tensor(step.lam, dtype=torch.float64), -torch.tensor(step.violation, dtype=torch.float64)
        floor = dual.VARIANCE_FLOOR * torch.eye(len(lam), dtype=torch.float64)
        target = nonnegative_newton(lam, gradient, (step.covariance.double() + floor) / (step.beta * self.damping))
        moved = lam + (target - lam).clamp(-self.max_step, self.max_step)
        return moved.clamp(0, self.lam_max).tolist(), list(step.memory)


@dataclass(frozen=True)
class _Separate(ABC):
    """An update of each constraint by itself, without memory."""

    lr: float
    lam_max: float

    @abstractmethod
    def next_lambda(self, lam: float, violation: float) -> float:
        """Return the multiplier of one constraint after the step."""

    def __call__(self, step: Step) -> Result:
        """Return the multiplier of each constraint after the step, and the unchanged memory."""
        return [self.next_lambda(lam, violation) for lam, violation in zip(step.lam, step.violation, strict=True)], list(
            step.memory
        )


@UPDATES.register("projected")
class Projected(_Separate):
    """The paper's projected gradient step, for each constraint [C-DPO, Eq. 14]."""

    def next_lambda(self, lam: float, violation: float) -> float:
        """Return clip(lambda + lr violation, 0, lam_max)."""
        return dual.projected_step(lam, violation, 0.0, self.lr, self.lam_max)


@UPDATES.register("log")
class Log(_Separate):
    """A gradient step on log lambda, for each constraint; never reaches 0 [SafeRLHF]."""

    def next_lambda(self, lam: float, violation: float) -> float:
        """Return exp(log lambda + lr lambda violation), clipped."""
        return dual.log_step(lam, violation, 0.0, self.lr, LOG_MINIMUM, self.lam_max)


@UPDATES.register("pi")
@dataclass(frozen=True)
class ProportionalIntegral:
    """A proportional-integral controller for each constraint (ours, after cooper's nuPI); its memory is the integral."""

    lr: float
    proportional: float  # weight of the violation itself, in units of `lr`
    lam_max: float

    def __call__(self, step: Step) -> Result:
        """Return the multipliers and the integrals; an integral begins at the initial multiplier."""
        gain = self.lr * self.proportional
        pairs = [
            dual.pi_step(one, memory.get("integral", one), violation, 0.0, self.lr, gain, self.lam_max)
            for one, violation, memory in zip(step.lam, step.violation, step.memory, strict=True)
        ]
        return [lam for lam, _ in pairs], [{"integral": integral} for _, integral in pairs]


def make_update(config: ConstraintConfig) -> Update | None:
    """Return the update of the configuration; None where lambda is not updated (`constraint.kind` is `fixed` or `none`).

    Raises:
        ConfigError: the update is unknown, `update_options` has an option that the update lacks, or lacks one that it needs.
    """
    if config.kind != "dual":
        return None
    update = UPDATES[config.update]
    settings = {field.name: field for field in fields(update)}  # type: ignore[arg-type]
    options = dict(config.update_options)
    for name in sorted(options.keys() - settings.keys()):
        allowed = ", ".join(sorted(settings)) or "none"
        raise ConfigError(f"constraint.update_options.{name}: update={config.update} has no such option; expected one of {allowed}")
    values = {name: getattr(config, key) for name, key in KEYS.items() if name in settings} | options
    missing = [name for name, field in settings.items() if name not in values and field.default is MISSING]
    if missing:
        raise ConfigError(f"constraint.update_options.{missing[0]}: missing; update={config.update} needs it")
    return update(**values)
