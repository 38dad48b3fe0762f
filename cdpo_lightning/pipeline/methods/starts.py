"""The inputs of a method that are computed before training: the initial multipliers, and reference responses for the anchor."""

from __future__ import annotations

import torch

from cdpo_lightning.config import ConstraintConfig, PolicyConfig
from cdpo_lightning.console import Screen
from cdpo_lightning.constraints.constraint import REWARD, DualState, weighted_phi
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.errors import ConfigError
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.maths.closed_form import lagrangian_utility
from cdpo_lightning.maths.dual import effective_sample_size, one_shot_lambda
from cdpo_lightning.maths.multipliers import solve_multipliers
from cdpo_lightning.pipeline.compute_budget import ComputeBudget, of_samples
from cdpo_lightning.pipeline.prepare import MethodInputs
from cdpo_lightning.streams import Stream, stream_seed


def start_lambda(
    inputs: MethodInputs, config: ConstraintConfig, beta: float, screen: Screen
) -> tuple[dict[str, float], ComputeBudget]:
    """Return the initial multiplier of every constraint, and the compute that it took.

    `constraint.kind=none` gives 0. Else `constraint.lambda_init` is a number, `one_shot` (estimated on samples of the reference)
    or `exact` (the closed-form world's solution).

    Raises:
        ConfigError: `lambda_init` is `exact`, and no policy meets the limits.
    """
    names = [c.name for c in inputs.constraints]
    if config.kind == "none":
        return dict.fromkeys(names, 0.0), ComputeBudget()
    if config.lambda_init == "exact":
        return _exact_lambda(inputs), ComputeBudget()
    if not isinstance(config.lambda_init, str):
        return dict.fromkeys(names, float(config.lambda_init)), ComputeBudget()
    return _one_shot(inputs, config, beta, screen)


def _exact_lambda(inputs: MethodInputs) -> dict[str, float]:
    lam = None if inputs.exact is None else inputs.exact.solve()
    if lam is None:
        limit = inputs.constraints[0].limit
        raise ConfigError(f"constraint.c_limit={limit}: no policy meets it, so there is no exact lambda; give a number")
    return lam


def _one_shot(
    inputs: MethodInputs, config: ConstraintConfig, beta: float, screen: Screen
) -> tuple[dict[str, float], ComputeBudget]:
    """Return the multipliers that solve the dual problem on samples of the reference [CAN], and the compute of the samples."""
    count = config.one_shot_samples
    measured = reference_samples(inputs, count)
    dual = DualState(lam={})
    reward = measured.scores[REWARD].view(-1, count)
    costs = torch.stack([weighted_phi(measured.scores, c, dual, measured.prompt).view(-1, count) for c in inputs.constraints])
    limits = [c.limit for c in inputs.constraints]
    if len(limits) == 1:
        lam = [one_shot_lambda(reward, costs[0], beta, limits[0], config.lambda_max)]
    else:
        uniform = torch.zeros_like(reward)  # drawn from pi_ref, the samples weigh the same
        exact = solve_multipliers(uniform, reward, costs, beta, torch.tensor(limits, dtype=torch.float64))
        lam = exact.clamp(max=config.lambda_max).tolist()
    size = float(effective_sample_size(lagrangian_utility(reward, costs, lam) / beta).mean())
    warning = "" if size >= 0.1 * count else "; below 10 %: do not trust it, raise one_shot_samples"
    shown = ", ".join(f"{one:.3f}" for one in lam)
    screen.say(f"  one-shot lambda {shown}, effective samples {size:.1f} of {count} a prompt{warning}")
    return dict(zip([c.name for c in inputs.constraints], lam, strict=True)), of_samples([measured])


def reference_samples(inputs: MethodInputs, per_prompt: int) -> Measurement:
    """Return the measurement of `per_prompt` samples of the reference for each prompt."""
    seed = stream_seed(inputs.settings.seed, Stream.DUAL_SAMPLES, 0)
    return inputs.evaluator.measure(inputs.evaluator.reference, inputs.pairs.prompts, per_prompt, seed)


def anchor_table(inputs: MethodInputs, policy: PolicyConfig) -> tuple[PairTable | None, ComputeBudget]:
    """Return a table of reference responses for the anchor (None if it is off), and the compute of drawing them."""
    if policy.anchor == 0:
        return None, ComputeBudget()
    measured = reference_samples(inputs, policy.anchor_responses)
    table = PairTable(
        prompts=inputs.pairs.table.prompts,
        responses=tuple(s.tokens for s in measured.samples),
        prompt_N=measured.prompt,
        scores=measured.scores,
        reference_logp_N=measured.reference_logp,
        pair_M2=torch.empty(0, 2, dtype=torch.long),
        draw_M=draws(0, 0),
    )
    return table, of_samples([measured])
