"""The exact solution against hand values, finite differences, a convex solver, KKT and quadrature."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from torch import Tensor

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths import closed_form, dual

torch.set_num_threads(1)

FEW = settings(deadline=None, max_examples=25)
SEEDS = st.integers(0, 10_000)
BETA = 0.4


class World(NamedTuple):
    reference_logp: Tensor
    reward: Tensor
    cost: Tensor


def random_world(seed: int, prompts: int = 3, responses: int = 4) -> World:
    """Rewards that tempt: they rise with the cost, so that the constraint binds."""
    generator = torch.Generator().manual_seed(seed)
    logits, reward, cost = torch.randn(3, prompts, responses, generator=generator, dtype=torch.float64)
    return World(logits.log_softmax(-1), reward + cost, cost)


def binding_limit(world: World) -> float:
    """Halfway between the smallest expected cost there is and that of the policy that ignores cost."""
    careless = (world.reference_logp + world.reward / BETA).softmax(-1)
    return float((careless * world.cost).sum(-1).mean() + world.cost.amin(-1).mean()) / 2


def utility(world: World, lam: float) -> Tensor:
    """r - lambda c, written out here."""
    return world.reward.double() - lam * world.cost.double()


COIN = World(torch.tensor([[0.5, 0.5]]).log(), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
"""Two responses, equal but for their cost 0 or 1: pi*_lambda(1) = 1 / (1 + e^(lambda/beta)), solved by hand."""


def test_normalise_sums_to_one_in_float64():
    logp = closed_form.normalise(torch.tensor([[0.0, math.log(3)], [-800.0, -800.0]]))
    assert logp.dtype == torch.float64
    torch.testing.assert_close(logp.exp(), torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64))


def test_expectation_averages_over_prompts():
    """Prompt 0: 1/4 * 4 + 3/4 * 8 = 7; prompt 1: 1; their mean is 4."""
    logp = torch.tensor([[0.25, 0.75], [1.0, 0.0]]).log()
    assert closed_form.expectation(logp, torch.tensor([[4.0, 8.0], [1.0, 5.0]])) == pytest.approx(4)


def test_the_coin_by_hand():
    """beta = 2, lambda = 2 ln 3: odds 3 to 1 for the safe response, Z = (1 + 1/3)/2 = 2/3, Var = 3/16."""
    lam, beta = 2 * math.log(3), 2.0
    given = (COIN.reference_logp, utility(COIN, lam), beta)
    policy = closed_form.optimal_policy(*given).exp()
    torch.testing.assert_close(policy, torch.tensor([[0.75, 0.25]], dtype=torch.float64))
    assert closed_form.log_partition(*given).tolist() == pytest.approx([math.log(2 / 3)])
    assert closed_form.dual_value(*given, 0.1 * lam) == pytest.approx(2 * math.log(2 / 3) + 0.1 * lam)
    assert closed_form.dual_gradient(*given, COIN.cost, 0.1) == pytest.approx(0.1 - 0.25)
    assert closed_form.dual_hessian(*given, COIN.cost[None]).item() == pytest.approx(3 / 16 / 2)
    assert closed_form.solve_lambda(*COIN, beta, 0.25) == pytest.approx(lam, abs=1e-11)


def test_kl_divergence_by_hand():
    """KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2, halved by a second prompt where the two agree."""
    p = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert closed_form.kl_divergence(p, torch.zeros(2, 2)) == pytest.approx(expected)


def test_kl_divergence_renormalises_what_a_leaking_policy_left():
    """Both policies lost nine tenths of their mass elsewhere: what is left is compared as a distribution."""
    p = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    q = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    assert closed_form.kl_divergence(p - 2.3, q - 5) == pytest.approx(closed_form.kl_divergence(p, q))


def test_kl_divergence_with_a_response_that_never_comes():
    """0 ln 0 = 0: KL((1, 0) || (1/2, 1/2)) = ln 2; the other way round it is infinite."""
    certain, even = torch.tensor([[1.0, 0.0]]).log(), torch.zeros(1, 2)
    assert closed_form.kl_divergence(certain, even) == pytest.approx(math.log(2))
    assert closed_form.kl_divergence(even, certain) == math.inf


@FEW
@given(SEEDS, st.floats(0, 3))
def test_the_dual_is_the_lagrangian_at_its_maximiser(seed, lam):
    """Method fact 1, and no other policy does better."""
    world = random_world(seed)
    reference_logp, reward, cost = world
    policy = closed_form.optimal_policy(reference_logp, utility(world, lam), BETA)
    value = closed_form.dual_value(reference_logp, utility(world, lam), BETA, 0.3 * lam)

    def lagrangian(logp):
        return closed_form.lagrangian_value(logp, reference_logp, reward, cost[None], [lam], [0.3], BETA)

    assert lagrangian(policy) == pytest.approx(value, abs=1e-12)
    assert lagrangian(policy + 0.1 * reward.roll(1)) < value


@FEW
@given(SEEDS, st.floats(0.1, 3))
def test_gradient_and_hessian_by_finite_differences(seed, lam):
    """Method fact 2, central differences with h = 1e-4: errors of order h^2."""
    world, h = random_world(seed), 1e-4

    def value(at):
        return closed_form.dual_value(world.reference_logp, utility(world, at), BETA, 0.3 * at)

    gradient = (value(lam + h) - value(lam - h)) / (2 * h)
    hessian = (value(lam + h) - 2 * value(lam) + value(lam - h)) / h**2
    given = (world.reference_logp, utility(world, lam), BETA)
    assert closed_form.dual_gradient(*given, world.cost, 0.3) == pytest.approx(gradient, abs=1e-6)
    assert closed_form.dual_hessian(*given, world.cost[None]).item() == pytest.approx(hessian, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_strong_duality_against_a_convex_solver(seed):
    """Method fact 3: scipy maximises J_r over the policies under the limit, knowing nothing of lambda."""
    world = random_world(seed)
    c_limit = binding_limit(world)
    reference, reward, cost = (t.numpy() for t in (world.reference_logp.exp(), world.reward, world.cost))

    def loss(flat):
        p = flat.reshape(3, 4).clip(1e-12)
        return -((p * reward).sum() - BETA * (p * (torch.from_numpy(p / reference).log().numpy())).sum()) / 3

    constraints = [
        {"type": "eq", "fun": lambda flat: flat.reshape(3, 4).sum(-1) - 1},
        {"type": "ineq", "fun": lambda flat: c_limit - (flat.reshape(3, 4) * cost).sum() / 3},
    ]
    solved = optimize.minimize(
        loss,
        reference.ravel(),
        bounds=[(0, 1)] * 12,
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-13},
    )
    lam = closed_form.solve_lambda(*world, BETA, c_limit)
    policy = closed_form.optimal_policy(world.reference_logp, utility(world, lam), BETA)
    assert solved.success
    assert lam > 0.1
    value = closed_form.dual_value(world.reference_logp, utility(world, lam), BETA, lam * c_limit)
    assert value == pytest.approx(-solved.fun, abs=1e-6)
    assert policy.exp().flatten().tolist() == pytest.approx(solved.x.tolist(), abs=1e-3)
    assert closed_form.primal_value(policy, *world[:2], BETA) == pytest.approx(-solved.fun, abs=1e-6)


@FEW
@given(SEEDS, st.floats(-1.5, 1.5))
def test_the_optimum_satisfies_kkt(seed, c_limit):
    """Primal and dual feasible, complementary slackness lam (E c - C_limit) = 0; or infeasible, and then lam = inf."""
    world = random_world(seed)
    lam = closed_form.solve_lambda(*world, BETA, c_limit)
    if lam == math.inf:
        assert c_limit <= world.cost.amin(-1).mean()
        return
    weight = world.reference_logp.exp() * torch.exp((world.reward - lam * world.cost) / BETA)
    expected_cost = float((weight / weight.sum(-1, keepdim=True) * world.cost).sum(-1).mean())
    assert lam >= 0
    assert expected_cost <= c_limit + 1e-9
    assert lam * (expected_cost - c_limit) == pytest.approx(0, abs=1e-9)


def test_a_slack_limit_has_a_zero_price():
    """The coin costs 1/2 on average, so any limit from 1/2 up costs nothing."""
    assert closed_form.solve_lambda(*COIN, 1.0, 0.5) == 0.0
    assert closed_form.solve_lambda(*COIN, 1.0, 0.7) == 0.0


@pytest.mark.parametrize("c_limit", [-0.1, 0.0])
def test_an_infeasible_limit_has_an_infinite_price(c_limit):
    """The coin cannot cost less than 0, and costs 0 only in the limit lambda -> infinity."""
    assert closed_form.solve_lambda(*COIN, 1.0, c_limit) == math.inf


def test_a_root_above_the_ceiling_is_refused():
    """beta ln 99 = 4.595 for E[c] = 1/100."""
    assert closed_form.solve_lambda(*COIN, 1.0, 0.01, lam_max=4.6) == pytest.approx(math.log(99))
    with pytest.raises(NumericsError, match=r"lam_max = 4\.5"):
        closed_form.solve_lambda(*COIN, 1.0, 0.01, lam_max=4.5)


def test_a_large_root_is_found():
    """Costs a thousandth as large have lambda* a thousand times as large: 1000 ln 3, to 1e-12 of itself."""
    world = COIN._replace(cost=COIN.cost.double() / 1000)
    assert closed_form.solve_lambda(*world, 1.0, 0.00025) == pytest.approx(1000 * math.log(3), rel=1e-11)


def test_a_reference_that_leaks_is_renormalised():
    """The listed responses hold a tenth of the reference's mass: the world restricted to them is the same world."""
    leaking = COIN._replace(reference_logp=COIN.reference_logp.double() + math.log(0.1))
    values = [closed_form.dual_value(w.reference_logp, utility(w, 0.3), 2.0, 0.03) for w in (leaking, COIN)]
    assert values[0] == pytest.approx(values[1])


def test_reachable_cost_min_is_the_mean_of_the_minima():
    assert closed_form.reachable_cost_min(torch.tensor([[1.0, -2.0], [4.0, 5.0]])) == 1.0


@FEW
@given(SEEDS)
def test_the_duality_gap_is_beta_times_the_distance_to_the_optimum(seed):
    """g(lam*) - J(pi, lam*) = beta KL(pi || pi*), the KL written out here; 0 at the optimum."""
    world = random_world(seed)
    c_limit = binding_limit(world)
    lam = closed_form.solve_lambda(*world, BETA, c_limit)
    other = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).log_softmax(-1)
    best = (world.reference_logp + (world.reward - lam * world.cost) / BETA).log_softmax(-1)
    distance = float((other.exp() * (other - best)).sum(-1).mean())
    given = (world.reference_logp, world.reward, world.cost[None], [lam], [c_limit], BETA)
    assert closed_form.duality_gap(other, *given) == pytest.approx(BETA * distance, abs=1e-10)
    assert closed_form.duality_gap(best, *given) == pytest.approx(0, abs=1e-12)


def test_dual_ascent_on_a_discrete_world_obeys_the_critical_rate():
    """Method fact 9 where E[c] is not a straight line: 1.5 beta/Var converges, 2.5 beta/Var ends in a 2-cycle."""
    world = random_world(7)
    c_limit = binding_limit(world)
    lam_star = closed_form.solve_lambda(*world, BETA, c_limit)
    critical = 1 / closed_form.dual_hessian(world.reference_logp, utility(world, lam_star), BETA, world.cost[None]).item()

    def ascend(lr):
        path = [lam_star + 0.01]
        for _ in range(400):
            policy = closed_form.optimal_policy(world.reference_logp, utility(world, path[-1]), BETA)
            expected_cost = closed_form.expectation(policy, world.cost)
            path.append(dual.projected_step(path[-1], expected_cost, c_limit, lr, 100.0))
        return path

    assert ascend(1.5 * critical)[-1] == pytest.approx(lam_star, abs=1e-6)
    *_, earlier, other, last = ascend(2.5 * critical)
    assert last == pytest.approx(earlier, abs=1e-6)
    assert abs(last - other) > 0.1


def test_linear_gaussian_lambda_by_quadrature():
    """Method fact 7. c ~ N(0.7, 1.3), r = 0.6 c + noise (Cov 0.78), beta 0.5, limit 0.2.

    The noise of r integrates out of the tilt, so E[c] is a ratio of two one-dimensional integrals, done by scipy.
    """
    lam = closed_form.linear_gaussian_lambda(0.7, 0.78, 1.3, 0.5, 0.2)

    def tilted(c, power):
        return c**power * math.exp(-((c - 0.7) ** 2) / 2.6 + (0.6 - lam) * c / 0.5)

    mass, moment = (integrate.quad(tilted, -15, 15, args=(power,))[0] for power in (0, 1))
    assert lam > 0.1
    assert moment / mass == pytest.approx(0.2, abs=1e-7)


def test_linear_gaussian_lambda_is_zero_when_the_limit_is_slack():
    """Mean -1 and no correlation: already below the limit 0."""
    assert closed_form.linear_gaussian_lambda(-1.0, 0.0, 1.0, 0.5, 0.0) == 0.0


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan])
def test_a_constant_cost_has_no_gaussian_lambda(variance):
    with pytest.raises(NumericsError, match="variance_cost"):
        closed_form.linear_gaussian_lambda(1.0, 0.0, variance, 0.5, 0.0)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_utility_that_is_not_finite_is_refused(value):
    with pytest.raises(NumericsError, match="utility"):
        closed_form.optimal_policy(COIN.reference_logp, torch.tensor([[0.0, value]]), 1.0)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(NumericsError, match="beta"):
        closed_form.log_partition(COIN.reference_logp, COIN.reward, beta)
