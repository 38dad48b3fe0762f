"""Dual steps on worlds whose lambda* is known by hand."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdpo_lightning.errors import ConfigError, NumericsError
from cdpo_lightning.maths import dual

torch.set_num_threads(1)

FEW = settings(deadline=None, max_examples=25)
FINITE = st.floats(-100, 100)
NOT_FINITE = [math.nan, math.inf, -math.inf]


class GaussianWorld:
    """(r, c) Gaussian under the reference: E[c] under pi*_lambda is mean + (cov - lambda var) / beta, a straight line.

    Mean 1, cov 0.5, var 2, beta 0.5, limit 0: E[c] = 2 - 4 lambda, so lambda* = 0.5.
    """

    beta, variance, c_limit, lam_star = 0.5, 2.0, 0.0, 0.5

    @staticmethod
    def expected_cost(lam: float) -> float:
        return 2 - 4 * lam


def iterate(step, lam: float, times: int) -> list[float]:
    path = [lam]
    for _ in range(times):
        path.append(step(path[-1], GaussianWorld.expected_cost(path[-1])))
    return path


def gaussian_step(lr: float):
    return partial(dual.projected_step, c_limit=0.0, lr=lr, lam_max=10.0)


def test_projected_step_hand_values():
    """Violation 2, rate 0.1: up by 0.2. Violation -2 from 0.1 would be -0.1: held at 0. From 4.9 to 5.1: held at 5."""
    assert dual.projected_step(0.1, 3.0, 1.0, 0.1, 5.0) == pytest.approx(0.3)
    assert dual.projected_step(0.1, -1.0, 1.0, 0.1, 5.0) == 0.0
    assert dual.projected_step(4.9, 3.0, 1.0, 0.1, 5.0) == 5.0


def test_dual_ascent_converges_below_the_critical_rate():
    """Method fact 9: rate 1.5 beta/Var multiplies the error by 1 - 1.5 = -0.5 each round."""
    path = iterate(gaussian_step(1.5 * 0.5 / 2), 0.6, 40)
    assert path[1] == pytest.approx(0.45)
    assert path[-1] == pytest.approx(GaussianWorld.lam_star, abs=1e-9)


def test_dual_ascent_cycles_above_the_critical_rate():
    """Method fact 9: rate 2.5 beta/Var multiplies the error by -1.5; 0 -> 2.5 lambda* = 1.25 -> below 0 -> 0 ..."""
    path = iterate(gaussian_step(2.5 * 0.5 / 2), 0.6, 40)
    assert path[-4:] == pytest.approx([1.25, 0.0, 1.25, 0.0]) or path[-4:] == pytest.approx([0.0, 1.25, 0.0, 1.25])


def test_newton_solves_a_linear_world_in_one_step():
    step = partial(dual.newton_step, c_limit=0.0, beta=0.5, cost_variance=2.0, damping=1.0, max_step=10.0, lam_max=10.0)
    assert iterate(step, 3.0, 1)[-1] == pytest.approx(GaussianWorld.lam_star)


def test_newton_hand_values():
    """damping 0.5 * beta 0.2 * violation 4 / variance 2 = 0.2; capped at 0.05; projected at both ends."""
    step = partial(dual.newton_step, beta=0.2, damping=0.5, cost_variance=2.0, c_limit=1.0)
    assert step(1.0, 5.0, max_step=1.0, lam_max=5.0) == pytest.approx(1.2)
    assert step(1.0, 5.0, max_step=0.05, lam_max=5.0) == pytest.approx(1.05)
    assert step(1.0, -3.0, max_step=0.05, lam_max=5.0) == pytest.approx(0.95)
    assert step(0.1, -3.0, max_step=1.0, lam_max=5.0) == 0.0
    assert step(4.9, 5.0, max_step=1.0, lam_max=5.0) == 5.0


def test_newton_without_variance_takes_its_largest_step():
    assert dual.newton_step(1.0, 2.0, 0.0, 0.1, 0.0, 1.0, 0.5, 5.0) == 1.5


@FEW
@given(st.floats(0, 3), FINITE, FINITE, st.floats(0.1, 10), st.floats(0.1, 10))
def test_newton_is_invariant_to_the_scale_of_the_cost(lam, expected_cost, c_limit, variance, scale):
    """Costs times s: lambda* is lambda* / s, and so is every iterate."""
    step = partial(dual.newton_step, beta=0.3, damping=0.8, max_step=math.inf, lam_max=math.inf)
    plain = step(lam, expected_cost, c_limit, cost_variance=variance)
    scaled = step(lam / scale, scale * expected_cost, scale * c_limit, cost_variance=scale**2 * variance)
    assert scaled * scale == pytest.approx(plain, rel=1e-9, abs=1e-9)


def test_log_step_hand_value():
    """log lam + lr lam violation: 2 * exp(0.1 * 2 * 3) = 2 e^0.6."""
    assert dual.log_step(2.0, 4.0, 1.0, 0.1, 1e-4, 100.0) == pytest.approx(2 * math.exp(0.6))


def test_log_step_never_reaches_zero_and_respects_its_box():
    """Even an exponent that overflows ends at the ceiling; a start at 0 begins at the floor, and rises from it."""
    assert dual.log_step(1.0, -1e6, 0.0, 1.0, 1e-3, 5.0) == 1e-3
    assert dual.log_step(1.0, 1e6, 0.0, 1.0, 1e-3, 5.0) == 5.0
    assert dual.log_step(0.0, 0.0, 0.0, 1.0, 1e-3, 5.0) == 1e-3
    assert dual.log_step(0.0, 10.0, 0.0, 1.0, 1e-3, 5.0) == pytest.approx(1e-3 * math.exp(0.01))


def test_log_step_converges_to_the_root():
    """Near lambda* the error is multiplied by 1 - lr lam*^2 4 = 0.9 for lr = 0.1: 300 rounds leave 2e-14."""
    step = partial(dual.log_step, c_limit=0.0, lr=0.1, lam_min=1e-4, lam_max=10.0)
    assert iterate(step, 0.2, 300)[-1] == pytest.approx(GaussianWorld.lam_star, abs=1e-9)


@pytest.mark.parametrize("lam_min", [0.0, -1.0, math.nan])
def test_log_step_refuses_a_floor_that_is_not_positive(lam_min):
    with pytest.raises(ConfigError, match="lam_min"):
        dual.log_step(1.0, 0.0, 0.0, 0.1, lam_min, 5.0)


def test_pi_step_hand_values():
    """Violation 2, rate 0.1: integral 1.0 -> 1.2; proportional 0.25 adds 0.5: lambda 1.7. Without it, projected."""
    assert dual.pi_step(1.3, 1.0, 3.0, 1.0, 0.1, 0.25, 5.0) == pytest.approx((1.7, 1.2))
    assert dual.pi_step(1.0, 1.0, 3.0, 1.0, 0.1, 0.0, 5.0) == pytest.approx((1.2, 1.2))


def test_pi_step_settles_at_the_root_with_lambda_equal_to_its_integral():
    lam = integral = 2.0
    for _ in range(200):
        expected_cost = GaussianWorld.expected_cost(lam)
        lam, integral = dual.pi_step(lam, integral, expected_cost, 0.0, 0.1, 0.05, 10.0)
    assert (lam, integral) == pytest.approx((0.5, 0.5), abs=1e-9)


@pytest.mark.parametrize(("push", "end"), [(-50.0, 0.0), (50.0, 5.0)])
def test_pi_step_does_not_wind_up_at_either_end(push, end):
    """A hundred rounds against a wall, then one step back: lambda leaves the wall at once, by lr + proportional."""
    lam = integral = 2.0
    for _ in range(100):
        lam, integral = dual.pi_step(lam, integral, push, 0.0, 0.1, 0.2, 5.0)
    assert (lam, integral) == (end, end)
    back = -math.copysign(1.0, push)
    assert dual.pi_step(lam, integral, back, 0.0, 0.1, 0.2, 5.0)[0] == pytest.approx(end + 0.3 * back)


@FEW
@given(st.floats(0, 5), FINITE, FINITE, st.floats(0.01, 10))
def test_every_step_stays_in_its_box_and_moves_with_the_violation(lam, expected_cost, c_limit, rate):
    stepped = [
        dual.projected_step(lam, expected_cost, c_limit, rate, 5.0),
        dual.newton_step(lam, expected_cost, c_limit, rate, 2.0, 0.5, 1.0, 5.0),
        dual.pi_step(lam, lam, expected_cost, c_limit, rate, 0.1, 5.0)[0],
        dual.log_step(lam, expected_cost, c_limit, rate, 1e-6, 5.0) if lam > 1e-6 else lam,
    ]
    for new in stepped:
        assert 0 <= new <= 5
        assert (new - lam) * (expected_cost - c_limit) >= 0


PROJECTED = {"lam": 1.0, "expected_cost": 0.0, "c_limit": 0.0, "lr": 0.1}
NEWTON = {"lam": 1.0, "expected_cost": 0.0, "c_limit": 0.0, "beta": 0.1, "cost_variance": 1.0, "damping": 1.0}
ALARM = {"lam": 1.0, "violation": 0.0, "minimum_cost": 0.0, "c_limit": 0.0}
REFUSALS = [
    (partial(dual.projected_step, lam_max=5.0), PROJECTED),
    (partial(dual.newton_step, max_step=1.0, lam_max=5.0), NEWTON),
    (partial(dual.log_step, lam_min=0.1, lam_max=5.0), PROJECTED),
    (partial(dual.pi_step, lam_max=5.0), {**PROJECTED, "integral": 1.0, "proportional": 0.1}),
    (partial(dual.alarm, lam_max=5.0, standard_error=0.1), ALARM),
]


@pytest.mark.parametrize(("step", "inputs", "name"), [(s, i, n) for s, i in REFUSALS for n in i])
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_number_that_is_not_finite_is_refused_by_name(step, inputs, name, bad):
    step(**inputs)
    with pytest.raises(NumericsError, match=name):
        step(**{**inputs, name: bad})


@pytest.mark.parametrize("lam_max", [math.nan, -1.0])
def test_an_empty_box_is_refused(lam_max):
    with pytest.raises(NumericsError, match="range"):
        dual.projected_step(1.0, 0.0, 0.0, 0.1, lam_max)


def test_one_shot_hand_value():
    """Two samples, costs 0 and 1, rewards 0, beta 1: E[c] = 1/(1 + e^lam) = 1/4 at lam = ln 3."""
    reward, cost = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    assert dual.one_shot_lambda(reward, cost, 1.0, 0.25, 10.0) == pytest.approx(math.log(3), abs=1e-9)


@pytest.mark.parametrize(
    ("c_limit", "lam_max", "expected"),
    [
        (0.6, 10.0, 0.0),  # E[c] is 1/2 at lambda = 0: slack
        (0.25, 1.0, 1.0),  # the root ln 3 lies above
        (-0.5, 10.0, 10.0),  # no sample costs that little
        (0.25, 0.0, 0.0),  # a box of one point
    ],
)
def test_one_shot_at_the_ends(c_limit, lam_max, expected):
    assert dual.one_shot_lambda(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]), 1.0, c_limit, lam_max) == expected


def test_one_shot_of_a_cost_that_is_the_limit_is_zero():
    """Every response costs 1 = C_limit: satisfied with equality, so no price is due."""
    assert dual.one_shot_lambda(torch.zeros(2, 3), torch.ones(2, 3), 1.0, 1.0, 10.0) == 0.0


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_one_shot_refuses_scores_that_are_not_finite(bad):
    good, broken = torch.zeros(1, 2), torch.tensor([[0.0, bad]])
    with pytest.raises(NumericsError, match="reward"):
        dual.one_shot_lambda(broken, good, 1.0, 0.25, 10.0)
    with pytest.raises(NumericsError, match="cost"):
        dual.one_shot_lambda(good, broken, 1.0, 0.25, 10.0)


def test_the_plug_in_lambda_is_biased_upwards_and_less_so_with_more_samples():
    """Method fact 8, in the Gaussian world: r = a c + noise with cov 0.5, var 2, mean 1; lambda* = 0.5 exactly.

    1500 prompts keep the noise of the estimate below the bias at K = 128.
    """
    generator = torch.Generator().manual_seed(0)
    cost = 1 + math.sqrt(2) * torch.randn(1500, 128, generator=generator, dtype=torch.float64)
    reward = 0.25 * cost + 0.2 * torch.randn(1500, 128, generator=generator, dtype=torch.float64)
    estimates = [dual.one_shot_lambda(reward[:, :k], cost[:, :k], 0.5, 0.0, 10.0) for k in (4, 16, 128)]
    biases = [estimate - GaussianWorld.lam_star for estimate in estimates]
    assert biases[0] > 2 * biases[1] > 4 * biases[2] > 0


def test_effective_sample_size_hand_values():
    """Equal weights: K = 3. One weight: 1. Weights 1, 1, 2: 16 / 6. A shift of the log-weights changes nothing."""
    log_weight = torch.tensor([[7.0, 7, 7], [0, -1e4, -1e4], [900, 900, 900 + math.log(2)]], dtype=torch.float64)
    expected = torch.tensor([3, 1, 16 / 6], dtype=torch.float64)
    torch.testing.assert_close(dual.effective_sample_size(log_weight), expected)


@pytest.mark.parametrize(
    ("lam", "violation", "standard_error", "minimum_cost", "expected"),
    [
        (1.0, 0.5, 0.1, -1.0, "none"),
        (1.0, -0.5, 0.1, -1.0, "none"),
        (0.0, -0.5, 0.1, -1.0, "pinned_at_zero"),
        (0.0, 0.15, 0.1, -1.0, "pinned_at_zero"),  # within two standard errors
        (0.0, 0.25, 0.1, -1.0, "none"),  # violated for sure: lambda is about to rise
        (0.0, 5.0, math.inf, -1.0, "pinned_at_zero"),  # one prompt: nothing is for sure
        (5.0, 0.5, 0.1, -1.0, "saturated"),
        (5.0, -0.5, 0.1, -1.0, "none"),  # at the ceiling and on its way down
        (5.0, 0.5, 0.1, None, "saturated"),  # the reachable cost is not known
        (5.0, 0.5, 0.1, 0.2, "infeasible"),  # beats saturated
        (0.0, 0.1, 0.1, 0.2, "infeasible"),  # beats pinned
        (1.0, -0.5, 0.1, 0.2, "none"),  # the policy samples cheaper answers than those seen before
    ],
)
def test_alarms(lam, violation, standard_error, minimum_cost, expected):
    """C_limit = 0 and lambda_max = 5 throughout."""
    assert dual.alarm(lam, 5.0, violation, standard_error, minimum_cost, 0.0) == expected


def test_alarm_refuses_a_nan_standard_error():
    with pytest.raises(NumericsError, match="standard_error"):
        dual.alarm(1.0, 5.0, 0.0, math.nan, None, 0.0)
