"""PD-DPO, SACPO and MODPO, whose losses are equal; cost estimates from yes-or-no answers; the exploration bonus.

Shapes: functions are elementwise unless they say otherwise. Log-probabilities are in nats. The label `target` is the probability
that response_1 is the SAFER of the two; `lam` > 0. pi_rhat is the policy after DPO on reward preferences.
"""

import torch
from torch import Tensor

from cdpo_lightning.errors import NumericsError
from cdpo_lightning.maths.preference import dpo_loss

LAMBDA_FLOOR = 0.01
"""The smallest lambda in beta / lambda, reward units per cost unit; the optimum is then close to pi_rhat."""


def temperature(beta: float, lam: float) -> float:
    """Return beta / lambda, cost units per nat; a lambda below `LAMBDA_FLOOR` counts as `LAMBDA_FLOOR`.

    Raises:
        NumericsError: beta is not positive, or lambda negative or nan.
    """
    if not (beta > 0 and lam >= 0):
        raise NumericsError(f"beta is {beta} and lam {lam}, expected beta > 0 and lam >= 0")
    return beta / max(lam, LAMBDA_FLOOR)


def implied_cost(logp: Tensor, reward_logp: Tensor, beta: float, lam: float) -> Tensor:
    """Return the implied cost c_pi = (beta/lambda) log(pi_rhat/pi), in cost units, up to a constant of the prompt [PD-DPO].

    It is Eq. 11 of [C-DPO] solved for c, with r = beta log(pi_rhat/pi_ref); pi_ref cancels.
    """
    return temperature(beta, lam) * (reward_logp - logp)


def pd_dpo_loss(logp_0: Tensor, logp_1: Tensor, rhat_0: Tensor, rhat_1: Tensor, target: Tensor, beta: float, lam: float) -> Tensor:
    """Return -log sigma(c_pi(unsafer) - c_pi(safer)) in nats [PD-DPO, as derived in docs/methods/pd_dpo.md]."""
    cost_0, cost_1 = implied_cost(logp_0, rhat_0, beta, lam), implied_cost(logp_1, rhat_1, beta, lam)
    return _bernoulli(cost_0 - cost_1, target)


def sacpo_loss(logp_0: Tensor, logp_1: Tensor, rhat_0: Tensor, rhat_1: Tensor, target: Tensor, beta: float, lam: float) -> Tensor:
    """Return the DPO loss on safety preferences with reference pi_rhat and temperature beta/lambda, nats [SACPO, second stage].

    Training uses this one of the three equal losses, because it is the code of DPO.
    """
    return dpo_loss(logp_0 - rhat_0, logp_1 - rhat_1, target, temperature(beta, lam))


def modpo_loss(
    log_ratio_0: Tensor, log_ratio_1: Tensor, margin_0: Tensor, margin_1: Tensor, target: Tensor, beta: float, lam: float
) -> Tensor:
    """Return -log sigma((beta (u_w - u_l) - (m_w - m_l)) / lambda) in nats; w is the safer response, l the other [MODPO].

    u = log(pi/pi_ref); the margin m is MODPO's margin reward, here the implicit reward beta log(pi_rhat/pi_ref).
    """
    weight = temperature(beta, lam) / beta
    return _bernoulli(weight * (beta * (log_ratio_1 - log_ratio_0) - (margin_1 - margin_0)), target)


def _bernoulli(logit: Tensor, target: Tensor) -> Tensor:
    return -target * torch.nn.functional.logsigmoid(logit) - (1 - target) * torch.nn.functional.logsigmoid(-logit)


def binary_feedback(cost: Tensor, asks: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Return an unbiased estimate of each cost, [N], from an oracle's answers, and the number of queries.

    The oracle answers "unsafe" with probability sigma(c). It is queried about a response until it has given both answers. After k
    equal answers the estimate is +H_k if they were "unsafe" and -H_k if "safe", H_k = 1 + 1/2 + ... + 1/k. It is unbiased: if n
    answers come before the first one of probability p, E[H_n] = sum_k (1 - p)^k / k = -log p [inverse binomial sampling, van
    Opheusden, Acerbi and Ma 2020]; one of the two runs is empty, and the difference has mean log p_unsafe - log p_safe = c. Its
    use here is ours. A limit of `asks` equal answers adds a bias of less than (1 + exp|c|) sigma(|c|)^asks / asks.

    Raises:
        NumericsError: a cost is not finite.
    """
    if not bool(cost.isfinite().all()):
        raise NumericsError("a cost is not finite; a safety oracle cannot answer for it")
    unsafe = torch.sigmoid(cost.double())
    first_unsafe = torch.rand(cost.shape, generator=generator, dtype=torch.float64) < unsafe
    other = torch.where(first_unsafe, 1 - unsafe, unsafe)  # the probability of the other answer
    uniform = torch.rand(cost.shape, generator=generator, dtype=torch.float64)
    # Answers after the first and before the other one are geometric: P(more than n) = (1 - other)^n.
    more = torch.floor(torch.log1p(-uniform) / torch.log1p(-other.clamp(max=1 - 1e-12)))
    run = (1 + more).clamp(max=asks).long()
    harmonic = torch.cat([torch.zeros(1), (1 / torch.arange(1, int(run.max()) + 1, dtype=torch.float64)).cumsum(0)])
    estimate = torch.where(first_unsafe, harmonic[run], -harmonic[run])
    return estimate, int(run.sum()) + len(run)


def exploration_bonus(feature: Tensor, seen: Tensor, ridge: float) -> Tensor:
    """Return sqrt(phi' Sigma^-1 phi) of each feature phi [N, H], [N], dimensionless (the form of [O-PD-DPO]; phi is ours).

    Sigma = ridge I + sum phi phi' over the features `seen` [S, H]. The bonus falls as 1/sqrt(n) if n responses like it were seen.
    """
    seen, feature = seen.double(), feature.double()
    sigma = ridge * torch.eye(seen.shape[1], dtype=torch.float64) + seen.T @ seen
    solved: Tensor = torch.linalg.solve(sigma, feature.T)
    return (feature * solved.T).sum(1).clamp_min(0).sqrt()
