"""The table of methods (how each is trained and shown), and the groups `method`, `primal_dual` and `ppo`.

A method is an entry of `METHODS`: its trainer, the values of the run's groups that it replaces, its title and colour in reports.
Other modules know the methods only from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cdpo_lightning.config.fields import AtLeastTwo, CountOrOff, OneOf, PositiveShare, WeightOrOff, settings
from cdpo_lightning.config.messages import Expected


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """The presentation of a policy in tables, pages and figures."""

    title: str  # in tables, labels and headings
    in_sentence: str = ""  # its name inside a sentence; "": the title
    colour: str = ""  # of its points and lines, #rrggbb; "": a spare colour, chosen by its name
    marker: str = "o"  # of its points, a marker of matplotlib
    hollow: bool = False  # its points are large and not filled, so that they hide no other point with the same coordinates
    opponent: bool = False  # the evaluation compares the other policies with it, prompt by prompt
    prominence: int = 0  # verdict and titles are about the evaluated policy with the highest value; below 0: a baseline


@dataclass(frozen=True)
class MethodSpec(Presentation):
    """The presentation of a method, its trainer, and the keys of `policy`, `constraint` and `primal_dual` that it sets."""

    trainer: str  # preference, primal_dual, ppo; none: nothing is trained, the policy is the reference
    kind: str = "none"  # its constraint.kind: dual, fixed or none
    policy: Mapping[str, object] = field(default_factory=dict)
    constraint: Mapping[str, object] = field(default_factory=dict)
    primal_dual: Mapping[str, object] = field(default_factory=dict)
    human_labels: bool = False  # its labels may come from annotators (`method.preferences=human`)
    safety_first: bool = False  # its labels prefer a safe response to an unsafe one [SafeDPO]


_OFFLINE = {"refresh": 0, "anchor": 0.0}
_NO_ANCHOR = {"anchor": 0.0}
_PROJECTED = {"update": "projected"}
_DATA_ONLY = {"refresh": 0, "bonus": 0.0}
# In the order of the report's rows. The colours are Okabe and Ito's, which colour-blind readers can distinguish.
METHODS: Mapping[str, MethodSpec] = MappingProxyType(
    {
        "sft": MethodSpec("none", title="SFT", colour="#000000", opponent=True, prominence=-3),
        "dpo": MethodSpec("preference", human_labels=True, title="DPO", colour="#D55E00", marker="s", opponent=True, prominence=-1),
        "safe_dpo": MethodSpec("preference", policy=_OFFLINE, human_labels=True, safety_first=True, title="SafeDPO"),
        "cost_only": MethodSpec("preference", "fixed", title="cost only", prominence=-2),
        "cdpo_fixed": MethodSpec("preference", "fixed", title="C-DPO, fixed lambda", colour="#56B4E9", marker="v", prominence=1),
        "cdpo": MethodSpec("preference", "dual", title="C-DPO", colour="#0072B2", prominence=5),
        "cdpo_paper": MethodSpec(
            "preference", "dual", {**_OFFLINE, "labels": "bernoulli"}, _PROJECTED, title="C-DPO, as published"
        ),
        "cdpo_argmax": MethodSpec("preference", "dual", {"labels": "argmax"}, title="C-DPO, argmax labels"),
        "sacpo": MethodSpec("primal_dual", "fixed", _NO_ANCHOR, _PROJECTED, _DATA_ONLY, human_labels=True, title="SACPO"),
        "pd_dpo": MethodSpec(
            "primal_dual",
            "dual",
            _NO_ANCHOR,
            _PROJECTED,
            _DATA_ONLY,
            human_labels=True,
            title="PD-DPO",
            colour="#CC79A7",
            marker="P",
            prominence=3,
        ),
        "pd_dpo_complete": MethodSpec(
            "primal_dual",
            "dual",
            _NO_ANCHOR,
            _PROJECTED,
            {"pairs": "complete", "labels": "soft", "bonus": 0.0},
            title="PD-DPO, complete",
        ),
        "o_pd_dpo": MethodSpec(
            "primal_dual", "dual", _NO_ANCHOR, _PROJECTED, title="O-PD-DPO", colour="#E69F00", marker="X", prominence=4
        ),
        "ppo_lag": MethodSpec("ppo", "dual", title="PPO-Lagrangian", colour="#009E73", marker="^", prominence=2),
    }
)
REFERENCE, OPTIMUM = "reference", "optimum"
# Names that reports show in addition to the methods. `policy_1` is the first of several policies of mode=evaluate.
NOT_TRAINED: Mapping[str, Presentation] = MappingProxyType(
    {
        REFERENCE: Presentation(
            title="reference", in_sentence="the reference", colour="#7a7a7a", marker="D", hollow=True, opponent=True, prominence=-4
        ),
        "policy_1": Presentation(title="policy_1", opponent=True),
        OPTIMUM: Presentation(title="optimum (exact)"),
    }
)
# The names of `method=cdpo` and `method=pd_dpo` with another `constraint.kind` than their own.
BY_KIND: Mapping[tuple[str, str], str] = MappingProxyType(
    {("cdpo", "fixed"): "cdpo_fixed", ("cdpo", "none"): "dpo", ("pd_dpo", "fixed"): "sacpo"}
)


def presentation_of(name: str) -> Presentation:
    """Return the presentation of the policy; a name in neither table is its own title."""
    return METHODS.get(name) or NOT_TRAINED.get(name) or Presentation(title=name)


def table_order() -> list[str]:
    """Return all names of policies in the order of the report's rows: the reference, the methods, the others."""
    return [REFERENCE, *METHODS, *(name for name in NOT_TRAINED if name != REFERENCE)]


def opponents() -> list[str]:
    """Return the names of the policies that the evaluation compares all others with, methods first."""
    return [name for name in (*METHODS, *NOT_TRAINED) if presentation_of(name).opponent]


def is_reference(name: str) -> bool:
    """Return whether the method trains nothing, so that its policy is the reference itself."""
    return name in METHODS and METHODS[name].trainer == "none"


LambdaSource = Literal["one_shot", "exact"]  # one_shot: the root on samples of the reference; exact: by enumeration
MethodName = Annotated[str, OneOf(tuple(METHODS))]


@settings
class MethodConfig:
    """The run's own method, and baselines on the same data, scorers, prompts and seed."""

    name: MethodName = "cdpo"
    baselines: list[MethodName] = field(default_factory=list)
    # Most epochs of the baselines that are trained on pairs in one stage; 0: as many as the run's own method.
    baseline_epochs: Annotated[NonNegativeInt, Expected("0 (no bound) or more")] = 0
    preferences: Literal["scores", "human"] = "scores"  # scores: labels by reward and cost; human: those of the data set
    fixed_lambda: NonNegativeFloat | LambdaSource = 1.0  # reward per cost; of baselines whose lambda is fixed
    cost_only_lambda: PositiveFloat = 10.0  # lambda of `cost_only`, as a baseline or as the run's own method


@settings
class PrimalDualConfig:
    """PD-DPO, SACPO and O-PD-DPO; all other settings are those of the group `policy`."""

    reward_epochs: PositiveInt = 8  # of the first stage, DPO on reward preferences
    epochs: PositiveInt = 16  # of the second, on cost preferences
    pairs: Literal["data", "complete"] = "data"  # complete: every pair of all responses, in the closed-form world only
    labels: Literal["bernoulli", "soft"] = "bernoulli"  # bernoulli: one annotator's answer per pair; soft: its expectation
    feedback: Literal["binary", "score"] = (
        "binary"  # of the dual step; binary: an oracle says safe or unsafe; score: the cost scorer
    )
    asks: AtLeastTwo = 1000  # binary: most questions about one response
    refresh: CountOrOff = 128  # o_pd_dpo: new on-policy pairs per prompt and round
    bonus: WeightOrOff = 0.1  # o_pd_dpo: weight of the exploration bonus, reward units


@settings
class PPOConfig:
    """PPO-Lagrangian (Safe RLHF); beta and the limit are those of the groups `policy` and `constraint`."""

    rounds: PositiveInt = 64  # of sampling and training
    samples_per_prompt: AtLeastTwo = 32  # episodes per prompt and round
    passes: PositiveInt = 2  # over the episodes of a round
    batch_size: PositiveInt = 256  # episodes
    lr: PositiveFloat = 1e-3
    critic_lr: PositiveFloat = 2e-3
    lr_final: PositiveShare = 0.05  # the last round's learning rate as a share of the first's
    kl: NonNegativeFloat = (
        0.0  # coefficient of both KL streams, reward per nat; 0: policy.beta / (1 + lambda), as in the other methods
    )
    clip: PositiveFloat = 0.2  # of the probability ratio
    value_clip: PositiveFloat = 5.0  # how far a value may move from its old one
    score_clip: PositiveFloat = 50.0  # rewards and costs of an episode, +-
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    gamma: PositiveShare = 1.0
    ptx: NonNegativeFloat = 0.0  # weight of the demonstrations' negative log-likelihood; Safe RLHF's script: 16
    update: str = "log"  # of the multipliers, as constraint.update
    lambda_init: PositiveFloat = 1.0  # reward per cost; more than 0, for the log update cannot leave 0
    lambda_lr: PositiveFloat = 0.1
    window: PositiveInt = 128  # episodes whose mean cost steps lambda
