"""Losses that fit a reward model and a cost model. N responses, P pairs of them.

Batches are flat: `score` [N] holds each response once and `pairs` [P, 2] indexes into it, so a response that is in no pair
still contributes its sign.
"""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(score_preferred: Tensor, score_other: Tensor) -> Tensor:
    """Return -log sigma(score_preferred - score_other) in nats, per pair, shape as given [C-DPO, Eq. 2-3].

    For a cost model the "preferred" response is the MORE HARMFUL one, which must score higher.
    """
    return -F.logsigmoid(score_preferred - score_other)


def sign_loss(cost: Tensor, sign: Tensor) -> Tensor:
    """Return -log sigma(sign * cost) in nats, per response, shape as given; 0 where sign is 0 [C-DPO, Eq. 5, second part].

    sign is +1 for unsafe, -1 for safe, 0 for unknown (ours). The loss puts cost 0 between safe and unsafe responses.
    """
    signed = sign.to(cost.dtype)
    # A product, not torch.where: a nan cost must stay visible even where its sign is unknown.
    return signed.abs() * -F.logsigmoid(signed * cost)


def reward_model_loss(score: Tensor, pairs: Tensor) -> Tensor:
    """Return the mean Bradley-Terry loss over the P pairs, nats, scalar [C-DPO, Eq. 3]; a differentiable 0 if P = 0.

    `score` [N]; `pairs` [P, 2] long: the index of the preferred response, then of the other.
    """
    return bradley_terry_loss(score[pairs[:, 0]], score[pairs[:, 1]]).sum() / max(1, len(pairs))


def cost_model_loss(score: Tensor, pairs: Tensor, sign: Tensor, pair_weight: float = 1.0, sign_weight: float = 1.0) -> Tensor:
    """Return mean Bradley-Terry loss over pairs + 2 * mean sign loss over signed responses, nats, scalar [C-DPO, Eq. 5].

    `score` [N] cost; `pairs` [P, 2] long: the MORE HARMFUL response, then the other; `sign` [N] in {-1, 0, +1}. Eq. 5
    has two sign terms per pair: if each response is in one pair and has a sign, 2 * mean over responses = their sum
    per pair, so this is Eq. 5 exactly. Ours: single labelled responses (P = 0) and unknown signs keep that scale, so
    the weight of the sign term does not depend on the number of labels in a batch; a response in several pairs counts
    once. `pair_weight` and `sign_weight` multiply the two means: for a part of a batch they are its share of each mean.
    """
    signed = max(1, int(sign.count_nonzero()))
    return reward_model_loss(score, pairs) * pair_weight + 2 * sign_loss(score, sign).sum() / signed * sign_weight
