"""Updates of the multipliers by hand, as properties, against cooper, and for several constraints at once."""

import math
import warnings

import pytest
import torch
from scipy import optimize

from cdpo_lightning.config import ConstraintConfig
from cdpo_lightning.constraints.updates import UPDATES, Log, Newton, Projected, ProportionalIntegral, Step, make_update
from cdpo_lightning.errors import ConfigError, NumericsError

BETA = 0.5


def step(update, lam=(1.0,), violation=(0.5,), covariance=None, memory=None):
    """One step from `lam`; the covariance is the identity times 2 unless given."""
    count = len(lam)
    curvature = 2 * torch.eye(count, dtype=torch.float64) if covariance is None else torch.tensor(covariance, dtype=torch.float64)
    return update(Step(list(lam), list(violation), curvature, BETA, memory or [{}] * count))


def configured(**constraint):
    values = {"lambda_lr": 0.1, "lambda_max": 2.0, "lambda_init": 1.0} | constraint
    return make_update(ConstraintConfig(**values))


def test_each_update_by_hand():
    """Violation 0.5, variance 2. newton: 1 + 0.5 (0.5 0.5 / 2); projected: 1 + 0.1 0.5; log: exp(0.1 1 0.5).

    pi: the integral goes from 0.8 to 0.85, and lambda to that plus 2 in units of the rate 0.1 times the violation.
    """
    assert step(Newton(0.5, 1.0, 2.0))[0] == [pytest.approx(1.0625)]
    assert step(Newton(1.0, 0.1, 2.0))[0] == [pytest.approx(1.1)]
    assert step(Projected(0.1, 2.0))[0] == [pytest.approx(1.05)]
    assert step(Log(0.1, 2.0))[0] == [pytest.approx(math.exp(0.05))]
    lam, memory = step(ProportionalIntegral(0.1, 2.0, 2.0), memory=[{"integral": 0.8}])
    assert lam == [pytest.approx(0.95)]
    assert memory == [{"integral": pytest.approx(0.85)}]


def test_the_integral_begins_at_lambdas_start():
    assert step(ProportionalIntegral(0.1, 0.0, 2.0), lam=(1.5,))[1] == [{"integral": pytest.approx(1.55)}]


@pytest.mark.parametrize("name", list(UPDATES))
def test_every_update_goes_the_right_way_and_stays_in_its_range(name):
    """A violated limit raises lambda, a slack one lowers it; neither beyond [0, lambda_max]."""
    update, strong = configured(update=name), configured(update=name, lambda_lr=100.0, damping=1.0, max_step=100.0)
    assert step(update, violation=(0.1,))[0][0] > 1.0 > step(update, violation=(-0.1,))[0][0]
    assert step(strong, violation=(50.0,), covariance=[[0.01]])[0] == [2.0]
    assert step(strong, violation=(-50.0,), covariance=[[0.01]])[0][0] == pytest.approx(0, abs=1e-4)
    with pytest.raises(NumericsError):
        step(update, violation=(math.nan,))


@pytest.mark.parametrize("name", [name for name in UPDATES if name != "newton"])
def test_updates_without_curvature_treat_each_constraint_alone(name):
    update = configured(update=name)
    lam, violation = (1.0, 0.3, 0.0001), (0.5, -0.2, 0.7)
    both = step(update, lam, violation)[0]
    assert both == [step(update, (one,), (v,))[0][0] for one, v in zip(lam, violation, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_newton_minimises_the_damped_quadratic_model_over_nonnegative_multipliers(seed):
    """Against scipy's bounded minimiser, which knows nothing of least squares: -v.d + d' Cov d / (2 beta damping)."""
    draw = torch.Generator().manual_seed(seed)
    factor = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    covariance = factor @ factor.T + 0.1 * torch.eye(3, dtype=torch.float64)
    lam, violation = torch.rand(3, generator=draw, dtype=torch.float64), torch.randn(3, generator=draw, dtype=torch.float64)
    stepped = step(Newton(0.5, 1e3, 1e3), lam.tolist(), violation.tolist(), covariance.tolist())[0]

    def model(target):
        d = torch.from_numpy(target) - lam
        return float(-violation @ d + d @ covariance @ d / (2 * BETA * 0.5))

    best = optimize.minimize(model, lam.numpy(), bounds=[(0, None)] * 3, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
    assert model(torch.tensor(stepped, dtype=torch.float64).numpy()) <= best.fun + 1e-9
    assert min(stepped) >= 0


def test_newton_with_uncorrelated_costs_is_one_step_for_each():
    lam, violation = (1.0, 0.2), (0.5, -3.0)
    both = step(Newton(0.5, 10.0, 5.0), lam, violation, [[2.0, 0.0], [0.0, 4.0]])[0]
    alone = [step(Newton(0.5, 10.0, 5.0), (one,), (v,), [[c]])[0][0] for one, v, c in zip(lam, violation, (2.0, 4.0), strict=True)]
    assert both == pytest.approx(alone, abs=1e-7)


@pytest.mark.parametrize("kind", ["fixed", "none"])
def test_without_a_loop_there_is_no_update(kind):
    assert configured(kind=kind) is None


def test_unknown_names_and_options_are_refused_with_what_there_is():
    with pytest.raises(ConfigError, match=r"constraint.update=newtn.*did you mean newton\?"):
        make_update(ConstraintConfig(update="newtn"))
    with pytest.raises(ConfigError, match=r"constraint.update_options.gain: update=newton has no such option.*damping"):
        configured(update_options={"gain": 1.0})
    assert configured(update_options={"damping": 0.25}).damping == 0.25


def test_the_pi_update_is_coopers_where_nothing_is_clipped():
    """cooper's nuPI, started with an error of zero and without smoothing, moves lambda as ours, violation by violation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cooper.optim import nuPI
        from cooper.optim.torch_optimizers import nuPIInitType
    lr, proportional = 0.1, 0.7
    lam = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    gains = {name: torch.tensor(gain, dtype=torch.float64) for name, gain in (("Kp", proportional), ("Ki", 1.0))}
    theirs = nuPI([lam], lr=lr, **gains, init_type=nuPIInitType.ZEROS, maximize=True)
    ours, memory = [1.0], [{}]
    for violation in (0.5, -0.3, 0.8, 0.8, -1.0, 0.05, 0.0):
        lam.grad = torch.tensor([violation], dtype=torch.float64)
        theirs.step()
        ours, memory = step(ProportionalIntegral(lr, proportional, 100.0), ours, (violation,), memory=memory)
        assert ours == [pytest.approx(lam.item(), abs=1e-12)]
