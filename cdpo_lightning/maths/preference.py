"""Labels under the Lagrangian reward, the policy losses fitted to them, and the anchor.

Shapes: functions are elementwise unless they say otherwise; M pairs, N responses, G prompts. A label always refers to the stored
order: it is the probability that `response_1` is preferred over `response_0`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cdpo_lightning.errors import ConfigError


def lagrangian_reward(reward: Tensor, cost: Tensor, lam: float) -> Tensor:
    """Return r_lambda = r - lambda * c, in reward units, shape as given [C-DPO, Eq. 11-12].

    Cost is positive when harmful, so a larger lambda punishes harm more.
    """
    return reward - lam * cost


def preference_probability(lagrangian_0: Tensor, lagrangian_1: Tensor) -> Tensor:
    """Return P(response_1 preferred over response_0) = sigma(r_lambda(1) - r_lambda(0)), shape as given [C-DPO, Eq. 12].

    Temperature 1: beta does not appear in Eq. 12.
    """
    return torch.sigmoid(lagrangian_1 - lagrangian_0)


def preference_target(probability: Tensor, draw: Tensor, labels: str) -> Tensor:
    """Return the labels, in [0, 1], the shape of `probability` [C-DPO, Eq. 12].

    `bernoulli` (the paper): 1 where draw < probability; `draw` is uniform on [0, 1) and stored, so that the labels depend on
    lambda alone. `soft` (ours): the probability itself, with the same expectation and optimum, and without label noise.
    `argmax` (ours, an ablation): 1 above one half, 0 below, 0.5 on a tie; its optimum is *not* pi*_lambda.

    Raises:
        ConfigError: `labels` is none of the three.
    """
    if labels == "bernoulli":
        return (draw < probability).to(probability.dtype)
    if labels == "soft":
        return probability
    if labels == "argmax":
        return ((probability > 0.5).to(probability.dtype) + (probability >= 0.5).to(probability.dtype)) / 2
    raise ConfigError(f"labels: got {labels!r}, expected one of 'bernoulli', 'soft', 'argmax'")


def safety_first(label: Tensor, unsafe: Tensor) -> Tensor:
    """Return the labels [M] that prefer a safe response to an unsafe one; nan where the pair is to be dropped [SafeDPO].

    `label` is 1 if response_1 is preferred, 0 if response_0 is, nan if unknown; `unsafe` is bool [M, 2]. If exactly one response
    is safe, it is preferred. If both are safe, the label stays. If both are unsafe, the pair is to be dropped.
    """
    only = torch.where(unsafe[:, 0], 1.0, 0.0).to(label.dtype)  # the safe one, where one of the two is
    decided = torch.where(unsafe[:, 0] ^ unsafe[:, 1], only, label)
    return decided.masked_fill(unsafe.all(1), torch.nan)


def dpo_loss(
    log_ratio_0: Tensor,
    log_ratio_1: Tensor,
    target: Tensor,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the policy loss of each pair in nats, shape as given, not averaged [C-DPO, Eq. 13; DPO, Eq. 7].

    With u = log_ratio_1 - log_ratio_0, h = beta u and the target t smoothed to t (1 - eps) + (1 - t) eps:
      sigmoid   -t log sigma(h) - (1 - t) log sigma(-h)
      ipo       t (u - 1/(2 beta))^2 + (1 - t) (u + 1/(2 beta))^2, in squared nats [IPO]
      hinge     t relu(1 - h) + (1 - t) relu(1 + h) [SLiC]
    At u = 0 the sigmoid loss is ln 2 to the last bit, whatever the target.

    Raises:
        ConfigError: `loss` is none of the three.
    """
    if loss not in _PAIR_LOSSES:
        raise ConfigError(f"loss: got {loss!r}, expected one of {', '.join(map(repr, _PAIR_LOSSES))}")
    margin = log_ratio_1 - log_ratio_0
    smoothed = (target * (1 - label_smoothing) + (1 - target) * label_smoothing).to(margin.dtype)
    of_margin = _PAIR_LOSSES[loss]
    # Not t * a + (1 - t) * b: where a == b, lerp returns a itself, so the first step's loss is ln 2 without rounding.
    return torch.lerp(of_margin(-margin, beta), of_margin(margin, beta), smoothed)


def _sigmoid(margin: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(beta * margin)


def _ipo(margin: Tensor, beta: float) -> Tensor:
    return (margin - 1 / (2 * beta)).square()


def _hinge(margin: Tensor, beta: float) -> Tensor:
    return F.relu(1 - beta * margin)


# The loss of a pair whose preferred response has a log-ratio that is `margin` nats larger.
_PAIR_LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {"sigmoid": _sigmoid, "ipo": _ipo, "hinge": _hinge}


def anchor_weights(lagrangian: Tensor, beta: float, group: Tensor, num_groups: int, log_correction: Tensor | None = None) -> Tensor:
    """Return the softmax of r_lambda / beta over each prompt's responses, [N]: the weights of a prompt sum to 1 (ours).

    They are the self-normalised importance weights of pi*_lambda [C-DPO, Eq. 11] on responses drawn from pi_ref. For responses
    from another distribution q, give `log_correction` [N] = log pi_ref(y|x) - log q(y|x); for enumerated responses log q is 0.
    `group` [N] is the index of each response's prompt, in 0 .. num_groups - 1.
    """
    logit = lagrangian / beta if log_correction is None else lagrangian / beta + log_correction
    highest = logit.new_full((num_groups,), -torch.inf).scatter_reduce(0, group, logit, "amax")
    weight = torch.exp(logit - highest[group])
    total = weight.new_zeros(num_groups).index_add(0, group, weight)
    return weight / total[group]


def anchor_loss(logp: Tensor, weight: Tensor) -> Tensor:
    """Return -sum_k w_k log pi(y_k|x) in nats, averaged over prompts, scalar (ours); a differentiable 0 for an empty batch.

    Each prompt's weights sum to 1, so the sum of all weights is the number of prompts. Biased towards the reference
    when a prompt has few responses: use 16 or more.
    """
    prompts = weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
    return -(weight * logp).sum() / prompts
