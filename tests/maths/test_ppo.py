"""PPO-Lagrangian's pieces against values worked out by hand."""

import math

import pytest
import torch

from cdpo_lightning.maths.dual import log_step
from cdpo_lightning.maths.ppo import (
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantage,
    kl_coefficient,
    kl_streams,
    lagrangian_advantage,
)

MASK = torch.tensor([[True, True, True], [True, False, False]])


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_streams_by_hand():
    """kl 0.1; log-ratios 1, -2, 3 of the first episode and 4 of the second, whose padding holds 9; scores clipped at 5.

    Reward: -0.1, 0.2, -0.3 + 2 and -0.4 - 5; cost: 0.1, -0.2, 0.3 - 1 and 0.4 + 5.
    """
    logp = numbers([0.0, -2.0, 1.0], [3.0, 9.0, 9.0])
    reference = numbers([-1.0, 0.0, -2.0], [-1.0, 0.0, 0.0])
    reward, cost = kl_streams(numbers(2.0, -7.0), numbers(-1.0, 60.0)[None], logp, reference, MASK, 0.1, 5.0)
    torch.testing.assert_close(reward, numbers([-0.1, 0.2, 1.7], [-5.4, 0, 0]))
    torch.testing.assert_close(cost, numbers([0.1, -0.2, -0.7], [5.4, 0, 0]))


@pytest.mark.parametrize("lam", [0.0, 0.7, 4.0])
def test_both_streams_together_charge_kl_once_whatever_lambda(lam):
    """Of scores 0, the sum over an episode of (r - lam c)/(1 + lam) is -kl log(pi/pi_ref)."""
    logp, reference = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    reward, cost = kl_streams(zero, zero[None], logp, reference, MASK, 0.3, 50.0)
    expected = -0.3 * ((logp - reference) * MASK).sum(1)
    torch.testing.assert_close(lagrangian_advantage(reward, [cost], [lam]).sum(1), expected)


def test_generalised_advantage_by_hand():
    """gamma 0.5, lambda 0.5; rewards 1, 2, 3, values 4, 2, 6.

    d = 1 + 1 - 4 = -2; 2 + 3 - 2 = 3; 3 - 6 = -3. A_3 = -3, A_2 = 3 - 3/4 = 2.25, A_1 = -2 + 2.25/4 = -1.4375.
    The second episode has one token: d = 1 - 4 = -3, whatever its padding holds.
    """
    reward, value = numbers([1.0, 2.0, 3.0], [1.0, 7.0, 7.0]), numbers([4.0, 2.0, 6.0], [4.0, 8.0, 8.0])
    advantage, returns = generalised_advantage(reward, value, MASK, 0.5, 0.5)
    torch.testing.assert_close(advantage, numbers([-1.4375, 2.25, -3.0], [-3.0, 0, 0]))
    torch.testing.assert_close(returns, numbers([2.5625, 4.25, 3.0], [1.0, 0, 0]))


def test_the_ends_of_generalised_advantage():
    """lambda 1: what is still to come less the value; lambda 0: one step."""
    reward, value = numbers([1.0, 2.0, 3.0]), numbers([4.0, 2.0, 6.0])
    full, _ = generalised_advantage(reward, value, MASK[:1], 1.0, 1.0)
    torch.testing.assert_close(full, numbers([6.0 - 4, 5.0 - 2, 3.0 - 6]))
    one, _ = generalised_advantage(reward, value, MASK[:1], 1.0, 0.0)
    torch.testing.assert_close(one, numbers([1.0 + 2 - 4, 2.0 + 6 - 2, 3.0 - 6]))


def test_the_lagrangian_advantage_by_hand():
    assert lagrangian_advantage(numbers(3.0), [numbers(1.0)], [0.5]).item() == pytest.approx(2.5 / 1.5)
    assert lagrangian_advantage(numbers(3.0), [numbers(1.0), numbers(-2.0)], [0.5, 1.0]).item() == pytest.approx(4.5 / 2.5)


@pytest.mark.parametrize("lam", [[0.0, 0.0], [0.7, 2.0]])
def test_with_two_costs_kl_is_charged_once_too(lam):
    """Of scores 0, the sum over an episode of (r - lam . c)/(1 + sum lam) is -kl log(pi/pi_ref)."""
    logp, reference = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    reward, *costs = kl_streams(zero, torch.stack([zero, zero]), logp, reference, MASK, 0.3, 50.0)
    expected = -0.3 * ((logp - reference) * MASK).sum(1)
    torch.testing.assert_close(lagrangian_advantage(reward, costs, lam).sum(1), expected)


def test_the_clipped_policy_loss_by_hand():
    """Ratios 1.5, 0.5, 1.5, 0.5, 1.1 with advantages 1, 1, -1, -1, 2 and clip 0.2: 1.2, 0.5, -1.5, -0.8, 2.2; mean 0.32.

    A gain is capped where the ratio has gone too far, a loss never: gradients are zero in the first and the fourth.
    """
    old = numbers(-1.0, -2.0, -1.0, -2.0, -3.0)
    ratio = numbers(1.5, 0.5, 1.5, 0.5, 1.1)
    logp = (old + ratio.log()).requires_grad_(True)
    loss = clipped_policy_loss(logp, old, numbers(1.0, 1.0, -1.0, -1.0, 2.0), 0.2)
    assert loss.item() == pytest.approx(-1.6 / 5)
    loss.backward()
    torch.testing.assert_close(logp.grad, numbers(0, -0.1, 0.3, 0, -0.44))


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    old = numbers(-1.0, -2.0)
    logp = old.clone().requires_grad_(True)
    clipped_policy_loss(logp, old, numbers(3.0, -1.0), 0.2).backward()
    torch.testing.assert_close(logp.grad, numbers(-1.5, 0.5))


def test_the_clipped_value_loss_by_hand():
    """Old value 0, return 3, clip 1. V 2: (2-3)^2 = 1 or (1-3)^2 = 4, so 4; V 0.5: 6.25; V -2: 25 or 16. Half the mean 35.25/6."""
    value = numbers(2.0, 0.5, -2.0)
    loss = clipped_value_loss(value, torch.zeros(3), torch.full((3,), 3.0), 1.0)
    assert loss.item() == pytest.approx((4 + 6.25 + 25) / 6)


def test_lambdas_step_by_hand():
    """log lambda <- log lambda + lr lambda (mean - limit): ln 2 + 0.1 2 (1.5 - 1) = ln 2 + 0.1."""
    assert log_step(2.0, 1.5, 1.0, 0.1, 1e-4, 5.0) == pytest.approx(2 * math.exp(0.1))


def test_the_kl_coefficient():
    assert kl_coefficient(0.01, 0.5, 1.0) == 0.01
    assert kl_coefficient(0.0, 0.5, 1.5) == pytest.approx(0.2)
