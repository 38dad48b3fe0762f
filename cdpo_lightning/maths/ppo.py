"""PPO-Lagrangian [SafeRLHF]: rewards and costs of the tokens, advantages and clipped losses.

Shape legend: R episodes (responses), T steps (tokens) padded on the right, N tokens of all episodes in one sequence, C constraints.
`mask` [R, T] is true on tokens. Reward and cost are in their units, log-probabilities in nats.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def kl_streams(
    reward: Tensor, costs: Tensor, logp: Tensor, reference_logp: Tensor, mask: Tensor, kl: float, score_clip: float
) -> Tensor:
    """Return the reward and the costs of every token, [1 + C, R, T] [SafeRLHF, script].

    The reward of a token is -kl (log pi - log pi_ref), each of its costs + the same; at the last token of an episode the score,
    clipped to +-score_clip, is added. `reward` [R], `costs` [C, R]. In `lagrangian_advantage` the KL terms of all sum to a penalty
    of kl per nat, whatever the multipliers.
    """
    penalty = kl * (logp - reference_logp) * mask
    last = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    reward_RT, *costs_RT = (score.clamp(-score_clip, score_clip)[:, None] * last for score in (reward, *costs))
    return torch.stack([reward_RT - penalty, *(cost_RT + penalty for cost_RT in costs_RT)])


def generalised_advantage(reward: Tensor, value: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return the advantage and the return of every token, each [R, T], 0 on padding [Schulman et al. 2016].

    A_t = sum_l (gamma lam)^l d_{t+l}, d_t = r_t + gamma V_{t+1} - V_t, V = 0 after the last token; the return is A_t + V_t.
    `lam` is the lambda of generalised advantage estimation, not a multiplier.
    """
    reward, value = reward * mask, value * mask
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
    delta = reward + gamma * following - value
    advantage = torch.zeros_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        running = (delta[:, t] + gamma * lam * running) * mask[:, t]
        advantage[:, t] = running
    return advantage, (advantage + value) * mask


def lagrangian_advantage(reward_advantage: Tensor, cost_advantages: Sequence[Tensor], lam: Sequence[float]) -> Tensor:
    """Return (A_r - sum_k lambda_k A_k) / (1 + sum_k lambda_k), the shape of `reward_advantage` [SafeRLHF, Eq. 31, for several]."""
    total = reward_advantage
    for one, advantage in zip(lam, cost_advantages, strict=True):
        total = total - one * advantage
    return total / (1 + sum(lam))


def clipped_policy_loss(logp: Tensor, old_logp: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return -mean over tokens [N] of min(q A, clip(q, 1 - clip, 1 + clip) A), q = pi/pi_old, scalar [PPO, Eq. 7]."""
    ratio = torch.exp(logp - old_logp)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def clipped_value_loss(value: Tensor, old_value: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return half the mean over tokens [N] of max((V - G)^2, (clip(V, V_old +- clip) - G)^2), scalar [SafeRLHF, script]."""
    clipped = torch.clamp(value, old_value - clip, old_value + clip)
    return 0.5 * torch.maximum((value - returns).square(), (clipped - returns).square()).mean()


def kl_coefficient(fixed: float, beta: float, lam: float) -> float:
    """Return the KL coefficient, reward units per nat: `fixed`, or beta / (1 + lambda) if `fixed` is 0 (ours).

    PPO-Lagrangian maximises E[(r - lambda c)/(1 + lambda)] - kl KL. With a fixed kl that is the problem of beta = kl (1 + lambda),
    which changes with lambda. With kl = beta / (1 + lambda) the optimum is pi*_lambda, as for the other methods [C-DPO, Eq. 11].
    """
    return fixed or beta / (1 + lam)
