"""One loss in three spellings; the dual from yes-or-no answers is unbiased; the bonus by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths import closed_form
from cdpo_lightning.maths.dual import projected_step
from cdpo_lightning.maths.preference import safety_first
from cdpo_lightning.maths.primal_dual import (
    LAMBDA_FLOOR,
    binary_feedback,
    exploration_bonus,
    implied_cost,
    modpo_loss,
    pd_dpo_loss,
    sacpo_loss,
    temperature,
)

NAN = math.nan


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_of_a_pair_by_hand():
    """beta 0.5, lambda 2: temperature 1/4. log(pi_rhat/pi) is ln 16 for response 0 and 0 for 1, so c_pi = ln 2 and 0.

    Response 1 is safer: -log sigma(ln 2) = ln 1.5; were response 0 the safer, ln 3; undecided, the mean of both.
    """
    logp_0, rhat_0 = numbers(-1 - math.log(16)), numbers(-1.0)
    logp_1 = rhat_1 = numbers(-3.0)
    assert implied_cost(logp_0, rhat_0, 0.5, 2.0).item() == pytest.approx(math.log(2))
    for target, loss in ((1.0, math.log(1.5)), (0.0, math.log(3)), (0.5, math.log(4.5) / 2)):
        assert pd_dpo_loss(logp_0, logp_1, rhat_0, rhat_1, numbers(target), 0.5, 2.0).item() == pytest.approx(loss)


@given(
    seed=st.integers(0, 2**31),
    beta=st.floats(0.01, 5),
    lam=st.floats(LAMBDA_FLOOR, 10),
)
def test_pd_dpo_sacpo_and_modpo_are_one_loss(seed, beta, lam):
    """On the same log-probabilities, MODPO's margin being beta log(pi_rhat/pi_ref): equal to 1e-10, the gradient too."""
    generator = torch.Generator().manual_seed(seed)
    logp, rhat, reference = (torch.randn(2, 20, generator=generator, dtype=torch.float64) - 5 for _ in range(3))
    target = torch.rand(20, generator=generator, dtype=torch.float64)
    logp.requires_grad_(True)
    losses = (
        pd_dpo_loss(*logp, *rhat, target, beta, lam),
        sacpo_loss(*logp, *rhat, target, beta, lam),
        modpo_loss(*(logp - reference), *(beta * (rhat - reference)), target, beta, lam),
    )
    gradients = [torch.autograd.grad(loss.sum(), logp, retain_graph=True)[0] for loss in losses]
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-10, atol=1e-10)


def test_with_every_pair_and_expected_answers_the_optimum_is_that_of_the_lagrangian():
    """Seven responses: pi_rhat exact for the reward; where pi = pi*_lambda [C-DPO, Eq. 11] the gradient is zero, elsewhere not."""
    beta, lam = 0.4, 0.8
    reference, reward, cost = (torch.randn(1, 7, dtype=torch.float64) for _ in range(3))
    rhat = closed_form.optimal_policy(reference, reward, beta)[0]
    best = closed_form.optimal_policy(reference, reward - lam * cost, beta)[0]
    first, second = torch.combinations(torch.arange(7)).unbind(1)
    target = torch.sigmoid(cost[0, first] - cost[0, second])

    def gradient(logp):
        logp = logp.clone().requires_grad_(True)
        loss = pd_dpo_loss(logp[first], logp[second], rhat[first], rhat[second], target, beta, lam)
        return torch.autograd.grad(loss.mean(), logp)[0].abs().max().item()

    assert gradient(best) < 1e-12
    assert gradient(rhat) > 1e-3


def test_at_lambda_0_the_policy_is_held_to_pi_rhat():
    """The optimum's log-ratio to pi_rhat is c / temperature: a hundredth of what it is at lambda = 1."""
    assert temperature(0.5, 0.0) == temperature(0.5, LAMBDA_FLOOR) == pytest.approx(50)
    assert temperature(0.5, 1.0) == 0.5
    for beta, lam in ((0.0, 1.0), (0.5, -0.1), (0.5, NAN), (NAN, 1.0)):
        with pytest.raises(NumericsError, match="expected beta > 0"):
            temperature(beta, lam)


@pytest.mark.parametrize("cost", [-2.5, -0.3, 0.0, 1.0, 3.0])
def test_binary_feedback_is_unbiased(cost):
    """200,000 estimates: the mean is the cost to 4.5 standard errors, and so is the dual step that is taken from it.

    The oracle is queried 1/p + 1/(1 - p) - 1 times on average, until it has given both answers.
    """
    count = 200_000
    estimate, requested = binary_feedback(torch.full((count,), cost), 10**6, torch.Generator().manual_seed(1))
    error = float(estimate.std()) / count**0.5
    assert float(estimate.mean()) == pytest.approx(cost, abs=4.5 * error)
    assert error < 0.01
    p = 1 / (1 + math.exp(-cost))
    assert requested / count == pytest.approx(1 / p + 1 / (1 - p) - 1, rel=0.02)
    step = sum(projected_step(50.0, float(part.mean()), -0.5, 0.7, 100.0) for part in estimate.split(1000)) / (count / 1000)
    assert step == pytest.approx(50 + 0.7 * (cost + 0.5), abs=4.5 * 0.7 * error)


def test_binary_feedback_by_hand():
    """At c = 0 the first answer is a coin, and k - 1 more equal ones follow with probability 2^-k: estimates are +-H_k."""
    estimate, _ = binary_feedback(torch.zeros(40_000), 10**6, torch.Generator().manual_seed(0))
    for value, share in ((1.0, 0.25), (-1.0, 0.25), (1.5, 0.125), (-11 / 6, 0.0625)):
        result = float((estimate - value).abs().lt(1e-9).double().mean())
        assert result == pytest.approx(share, abs=4.5 * (share / 40_000) ** 0.5)


def test_binary_feedback_stops_asking():
    """An answer that never comes is cut off: H_3 = 11/6 is the largest estimate of three questions."""
    estimate, requested = binary_feedback(torch.full((100,), 60.0), 3, torch.Generator().manual_seed(0))
    assert estimate.tolist() == pytest.approx([11 / 6] * 100)
    assert requested == 400
    with pytest.raises(NumericsError, match="safety oracle"):
        binary_feedback(torch.tensor([0.0, NAN]), 3, torch.Generator())


def test_the_exploration_bonus_by_hand():
    """Seen: (1, 0) three times and (0, 2) once, ridge 1: Sigma = diag(4, 5). Bonus of (2, 0): 1; of (0, 1): sqrt(1/5)."""
    seen = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 2.0]])
    bonus = exploration_bonus(torch.tensor([[2.0, 0.0], [0.0, 1.0], [2.0, 1.0]]), seen, 1.0)
    assert bonus.tolist() == pytest.approx([1.0, 0.2**0.5, 1.2**0.5])


def test_the_exploration_bonus_falls_as_one_over_the_root_of_what_was_seen():
    feature = torch.tensor([[0.6, 0.8]])
    few, many = (float(exploration_bonus(feature, feature.repeat(n, 1), 1e-9)) for n in (10, 1000))
    assert few == pytest.approx(10**-0.5, rel=1e-6)
    assert many == pytest.approx(1000**-0.5, rel=1e-6)


def test_safety_first_keeps_swaps_and_drops():
    """[label, unsafe_0, unsafe_1] -> label: both safe, as it is; one safe, that one; none, dropped."""
    cases = [
        (1.0, False, False, 1.0), (0.0, False, False, 0.0), (1.0, False, True, 0.0), (0.0, False, True, 0.0),
        (0.0, True, False, 1.0), (NAN, True, False, 1.0), (NAN, False, False, NAN), (1.0, True, True, NAN),
    ]  # fmt: skip
    result = safety_first(numbers(*(c[0] for c in cases)), torch.tensor([[c[1], c[2]] for c in cases]))
    assert result.tolist() == pytest.approx([c[3] for c in cases], nan_ok=True)
