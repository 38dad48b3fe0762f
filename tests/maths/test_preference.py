"""Labels and policy losses against hand values and the optimum that Eq. 11 promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdpo_lightning.errors import ConfigError
from cdpo_lightning.maths import preference

torch.set_num_threads(1)

FEW = settings(deadline=None, max_examples=25)
SCORES = st.lists(st.floats(-5, 5), min_size=4, max_size=4).map(lambda v: torch.tensor(v, dtype=torch.float64))
LOSSES = ["sigmoid", "ipo", "hinge"]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_lagrangian_reward_punishes_harm():
    """r = 2, c = 3, lambda = 0.5: 2 - 1.5 = 0.5; a negative cost earns: 2 + 1.5 = 3.5."""
    assert preference.lagrangian_reward(tensor(2, 2), tensor(3, -3), 0.5).tolist() == [0.5, 3.5]


def test_probability_is_that_of_response_1_at_temperature_one():
    """A lead of ln 3 for response_1 gives odds of 3 to 1, hence 3/4, without any beta."""
    probability = preference.preference_probability(tensor(0, math.log(3)), tensor(math.log(3), 0))
    torch.testing.assert_close(probability, tensor(0.75, 0.25))


@FEW
@given(SCORES, SCORES, st.floats(-3, 3), st.floats(-3, 3), st.floats(0, 5))
def test_a_shift_per_prompt_changes_no_label_and_a_swap_swaps(reward, cost, shift_reward, shift_cost, lam):
    """Method fact 10: responses (0, 1) and (2, 3) are pairs of one prompt, shifted together."""

    def probability(reward, cost):
        value = preference.lagrangian_reward(reward, cost, lam)
        return preference.preference_probability(value[:2], value[2:])

    before = probability(reward, cost)
    torch.testing.assert_close(probability(reward + shift_reward, cost + shift_cost), before)
    torch.testing.assert_close(probability(reward.roll(2), cost.roll(2)), 1 - before)


def test_targets():
    """Bernoulli is strict (a draw on [0, 1) below p), argmax ties at one half, soft is p itself."""
    probability, draw = tensor(0.0, 0.3, 0.5, 0.7, 1.0), tensor(0.0, 0.3, 0.4, 0.9, 0.999)
    assert preference.preference_target(probability, draw, "bernoulli").tolist() == [0, 0, 1, 0, 1]
    assert preference.preference_target(probability, draw, "argmax").tolist() == [0, 0, 0.5, 1, 1]
    assert preference.preference_target(probability, draw, "soft").equal(probability)


def test_bernoulli_has_the_soft_label_as_its_mean():
    """1000 evenly spaced draws of [0, 1): exactly 1000 p of them lie below p = 0.137."""
    draw = torch.arange(1000, dtype=torch.float64) / 1000
    label = preference.preference_target(torch.full_like(draw, 0.137), draw, "bernoulli")
    assert label.mean().item() == pytest.approx(0.137, abs=1e-12)


def test_unknown_label_mode_is_refused():
    with pytest.raises(ConfigError, match=r"hard.*'bernoulli', 'soft', 'argmax'"):
        preference.preference_target(tensor(0.5), tensor(0.5), "hard")


def test_unknown_loss_is_refused():
    with pytest.raises(ConfigError, match=r"logistic.*'sigmoid', 'ipo', 'hinge'"):
        preference.dpo_loss(tensor(0), tensor(0), tensor(1), 0.1, "logistic")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_loss_is_ln_2_to_the_last_bit(dtype):
    """Method fact 11: policy == reference makes both log-ratios equal, for any label and smoothing."""
    target = torch.linspace(0, 1, 101, dtype=dtype)
    same = torch.zeros(101, dtype=dtype)
    for smoothing in (0.0, 0.1):
        loss = preference.dpo_loss(same, same, target, 0.1, label_smoothing=smoothing)
        assert loss.eq(torch.tensor(math.log(2), dtype=dtype)).all()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("sigmoid", -math.log(0.75)),  # beta u = ln 3: sigma = 3/4
        ("ipo", (2 * math.log(3) - 1) ** 2),  # u = 2 ln 3, 1/(2 beta) = 1
        ("hinge", 0.0),  # 1 - ln 3 < 0
    ],
)
def test_hand_values(loss, expected):
    """beta = 0.5, log-ratios ln 3 and 3 ln 3: u = 2 ln 3, h = ln 3, response_1 preferred."""
    log_ratio_0, log_ratio_1 = tensor(math.log(3)), tensor(3 * math.log(3))
    assert preference.dpo_loss(log_ratio_0, log_ratio_1, tensor(1), 0.5, loss).item() == pytest.approx(expected)


def test_hand_values_for_the_other_response():
    """Same pair, response_0 preferred: -log 1/4; (2 ln 3 + 1)^2; 1 + ln 3. Label 1/4 mixes them 1 to 3."""
    pair = tensor(math.log(3)), tensor(3 * math.log(3))
    ln4, ln43 = math.log(4), math.log(4 / 3)
    assert preference.dpo_loss(*pair, tensor(0), 0.5).item() == pytest.approx(ln4)
    assert preference.dpo_loss(*pair, tensor(0), 0.5, "ipo").item() == pytest.approx((2 * math.log(3) + 1) ** 2)
    assert preference.dpo_loss(*pair, tensor(0), 0.5, "hinge").item() == pytest.approx(1 + math.log(3))
    assert preference.dpo_loss(*pair, tensor(0.25), 0.5).item() == pytest.approx(0.25 * ln43 + 0.75 * ln4)


@pytest.mark.parametrize(("label", "smoothed"), [(1, 0.75), (0, 0.25), (0.4, 0.45)])
def test_smoothing_moves_a_label_towards_the_other(label, smoothed):
    """eps = 0.25: t 3/4 + (1 - t) 1/4."""
    pair = tensor(0.3), tensor(-1.1)
    loss = preference.dpo_loss(*pair, tensor(label), 0.7, label_smoothing=0.25)
    torch.testing.assert_close(loss, preference.dpo_loss(*pair, tensor(smoothed), 0.7))


@pytest.mark.parametrize("loss", LOSSES)
@FEW
@given(st.floats(-4, 4), st.floats(-4, 4), st.floats(0, 1), st.floats(0.05, 2))
def test_swapping_the_responses_and_the_label_changes_nothing(loss, log_ratio_0, log_ratio_1, target, beta):
    one, two = tensor(log_ratio_0), tensor(log_ratio_1)
    forward = preference.dpo_loss(one, two, tensor(target), beta, loss)
    torch.testing.assert_close(preference.dpo_loss(two, one, 1 - tensor(target), beta, loss), forward)


@FEW
@given(st.floats(-8, 8), st.floats(0, 1), st.floats(0.05, 2))
def test_the_gradient_is_beta_times_the_error_in_probability(margin, target, beta):
    """d/du of the sigmoid loss is beta (sigma(beta u) - t): zero exactly where the policy's odds are the label's."""
    log_ratio_1 = tensor(margin).requires_grad_()
    preference.dpo_loss(tensor(0), log_ratio_1, tensor(target), beta).sum().backward()
    expected = beta * (1 / (1 + math.exp(-beta * margin)) - target)
    assert log_ratio_1.grad.item() == pytest.approx(expected, abs=1e-12)


def test_a_hopeless_pair_stays_finite_in_float32():
    """h = -1000 costs 1000 nats and pulls with the full gradient beta = 10."""
    log_ratio_1 = torch.tensor([-100.0], requires_grad=True)
    loss = preference.dpo_loss(torch.zeros(1), log_ratio_1, torch.ones(1), 10.0)
    loss.sum().backward()
    assert (loss.item(), log_ratio_1.grad.item()) == (1000.0, -10.0)


class Tabular:
    """Three prompts with four responses each; the policy is a table of logits, trained on every pair of a prompt.

    The target of the training is written out here from Eq. 11, not taken from the package.
    """

    beta, lam = 0.7, 0.8

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.reference = torch.randn(3, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
        self.reward = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        self.cost = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        weight = self.reference.exp() * torch.exp((self.reward - self.lam * self.cost) / self.beta)
        self.optimum = weight / weight.sum(-1, keepdim=True)

    def pair_loss(self, logits: Tensor, labels: str) -> Tensor:
        first, second = torch.combinations(torch.arange(4)).T
        value = preference.lagrangian_reward(self.reward, self.cost, self.lam)
        probability = preference.preference_probability(value[:, first], value[:, second])
        target = preference.preference_target(probability, torch.zeros_like(probability), labels)
        log_ratio = logits.log_softmax(-1) - self.reference
        return preference.dpo_loss(log_ratio[:, first], log_ratio[:, second], target, self.beta).mean()

    def train(self, labels: str, steps: int) -> tuple[Tensor, float]:
        logits = self.reference.clone().requires_grad_()
        for _ in range(steps):
            loss = self.pair_loss(logits, labels)
            (gradient,) = torch.autograd.grad(loss, logits)
            logits = (logits - 20 * gradient).detach().requires_grad_()
        return logits.softmax(-1).detach(), loss.item()


def test_all_pairs_with_soft_labels_train_to_the_optimum():
    """Method fact 4. The reference is far from it, so that standing still would fail."""
    world = Tabular()
    policy, _ = world.train("soft", 800)
    assert (world.reference.exp() - world.optimum).abs().max() > 0.1
    torch.testing.assert_close(policy, world.optimum, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_argmax_labels_train_past_the_optimum():
    """Method fact 5: no finite minimiser. The loss goes on falling and the best response takes all."""
    world = Tabular()
    policy, loss = world.train("argmax", 800)
    longer, later_loss = world.train("argmax", 1600)
    assert later_loss < loss < 0.05
    assert longer.amax(-1).min() > policy.amax(-1).min() > 0.9
    assert world.optimum.amax(-1).min() < 0.8


def test_anchor_weights_are_a_softmax_per_prompt():
    """Prompt 0: exp(0), exp(ln 3) -> 1/4, 3/4. Prompt 1, in between: a single response has weight 1. Prompt 2: none."""
    lagrangian, group = tensor(0, 7, 2 * math.log(3)), torch.tensor([0, 1, 0])
    torch.testing.assert_close(preference.anchor_weights(lagrangian, 2.0, group, 3), tensor(0.25, 1, 0.75))


def test_anchor_weights_of_enumerated_responses_are_the_optimum():
    """With log pi_ref as the correction, the weights of all responses are pi*_lambda itself [Eq. 11]."""
    world = Tabular()
    value = preference.lagrangian_reward(world.reward, world.cost, world.lam).flatten()
    group = torch.arange(3).repeat_interleave(4)
    weight = preference.anchor_weights(value, world.beta, group, 3, world.reference.flatten())
    torch.testing.assert_close(weight.view(3, 4), world.optimum)


def test_anchor_weights_survive_scores_that_overflow_exp():
    """r / beta of 10,000: e^10000 is no float, the difference of ln 3 is."""
    lagrangian = torch.tensor([1000.0, 1000.0 + 0.1 * math.log(3)])
    weight = preference.anchor_weights(lagrangian, 0.1, torch.zeros(2, dtype=torch.long), 1)
    torch.testing.assert_close(weight, torch.tensor([0.25, 0.75]), atol=1e-3, rtol=0)


def test_anchor_loss_averages_over_prompts():
    """Prompt 0: 1/4 * 4 + 3/4 * 8 = 7; prompt 1: 1; their mean is 4."""
    logp = tensor(-4, -1, -8).requires_grad_()
    loss = preference.anchor_loss(logp, tensor(0.25, 1, 0.75))
    loss.backward()
    assert loss.item() == 4
    assert logp.grad.tolist() == [-0.125, -0.5, -0.375]


def test_anchor_loss_of_an_empty_batch_is_zero():
    logp = torch.zeros(0, requires_grad=True)
    loss = preference.anchor_loss(logp, torch.zeros(0))
    loss.backward()
    assert loss.item() == 0


def test_the_anchor_is_minimal_at_its_weights():
    """-sum_k w_k log pi_k over distributions pi is smallest at pi = w (Gibbs); its gradient in the logits is pi - w."""
    weight = tensor(0.2, 0.5, 0.3)
    logits = weight.log().requires_grad_()
    preference.anchor_loss(logits.log_softmax(-1), weight).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
