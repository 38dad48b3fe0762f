"""The methods: how each is trained and shown, and the groups `method`, `primal_dual` and `ppo`.

A method is data: its trainer, the values of the run's groups that it replaces, and its title and colour in reports. Nothing else
knows the methods by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cdpo_lightning.config.checks import choice, require


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """How tables, pages and figures show a policy."""

    title: str  # in tables, labels and headings
    in_sentence: str = ""  # inside a sentence, where that is not the title
    colour: str = ""  # of its points and lines, #rrggbb; "": a spare colour, chosen by its name
    marker: str = "o"  # of its points, a marker of matplotlib
    hollow: bool = False  # its points are large and not filled, so that they hide no other point with the same coordinates
    opponent: bool = False  # the evaluation compares the other policies with it, prompt by prompt
    prominence: int = 0  # verdict and titles are about the evaluated policy where this is highest; below 0: a baseline


@dataclass(frozen=True)
class MethodSpec(Presentation):
    """How a method is shown, how it is trained, and which keys of `policy`, `constraint` and `primal_dual` it sets itself."""

    trainer: str  # none: it is the reference; preference; primal_dual; ppo
    kind: str = "none"  # constraint.kind: how its lambda moves
    policy: Mapping[str, object] = field(default_factory=dict)
    constraint: Mapping[str, object] = field(default_factory=dict)
    primal_dual: Mapping[str, object] = field(default_factory=dict)
    human_labels: bool = False  # whether its labels may come from annotators (`method.preferences=human`)
    safety_first: bool = False  # labels put the safe response first [SafeDPO]


_OFFLINE = {"refresh": 0, "anchor": 0.0}
_NO_ANCHOR = {"anchor": 0.0}
_PROJECTED = {"update": "projected"}
_DATA_ONLY = {"online": 0, "bonus": 0.0}
# In the order of the report's rows. Colours: Okabe and Ito's, which colour-blind readers can tell apart.
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
        "ppo_lag": MethodSpec(
            "ppo", "dual", constraint={"update": "log"}, title="PPO-Lagrangian", colour="#009E73", marker="^", prominence=2
        ),
    }
)
REFERENCE, OPTIMUM = "reference", "optimum"
# What reports show in addition to the methods. `policy_1` is the first of several policies given with mode=evaluate.
NOT_TRAINED: Mapping[str, Presentation] = MappingProxyType(
    {
        REFERENCE: Presentation(
            title="reference", in_sentence="the reference", colour="#7a7a7a", marker="D", hollow=True, opponent=True, prominence=-4
        ),
        "policy_1": Presentation(title="policy_1", opponent=True),
        OPTIMUM: Presentation(title="optimum (exact)"),
    }
)
# What `method=cdpo` and `method=pd_dpo` are called when the group `constraint` holds lambda fixed, or has none.
BY_KIND: Mapping[tuple[str, str], str] = MappingProxyType(
    {("cdpo", "fixed"): "cdpo_fixed", ("cdpo", "none"): "dpo", ("pd_dpo", "fixed"): "sacpo"}
)


def presentation_of(name: str) -> Presentation:
    """Return how the policy of this name is shown; a name that is in neither table is its own title."""
    return METHODS.get(name) or NOT_TRAINED.get(name) or Presentation(title=name)


def table_order() -> list[str]:
    """Return all names in the order of the report's rows: the reference, the methods, the others."""
    return [REFERENCE, *METHODS, *(name for name in NOT_TRAINED if name != REFERENCE)]


def opponents() -> list[str]:
    """Return the names that the evaluation compares the other policies with, methods first."""
    return [name for name in (*METHODS, *NOT_TRAINED) if presentation_of(name).opponent]


def is_reference(name: str) -> bool:
    """Return whether this method trains nothing, so that its policy is the reference itself."""
    return name in METHODS and METHODS[name].trainer == "none"


@dataclass(frozen=True)
class MethodConfig:
    """What is trained: the run's own method, and others beside it on the same data, scorers, prompts and seed."""

    name: str = "cdpo"
    baselines: list[str] = field(default_factory=list)
    baseline_epochs: int = 0  # most epochs of those beside that fit preferences; 0: as many as the run's own
    preferences: str = "scores"  # scores: labels by reward and cost; human: the data's own (dpo, safe_dpo, pd_dpo, sacpo)
    fixed_lambda: float | str = 1.0  # of methods beside that keep lambda: a number, one_shot or exact
    cost_only_lambda: float = 10.0  # lambda of `cost_only`, beside or the run's own

    def __post_init__(self) -> None:
        choice("method.name", self.name, tuple(METHODS))
        for baseline in self.baselines:
            choice("method.baselines", baseline, tuple(METHODS))
        require(self.baseline_epochs >= 0, "method.baseline_epochs", self.baseline_epochs, "0 (no bound) or more")
        choice("method.preferences", self.preferences, ("scores", "human"))
        require_lambda("method.fixed_lambda", self.fixed_lambda)
        require(self.cost_only_lambda > 0, "method.cost_only_lambda", self.cost_only_lambda, "more than 0")


def require_lambda(key: str, value: float | str) -> None:
    """Raises:
    ConfigError: the value is neither a number of 0 or more nor the name of a way to find one.
    """
    if isinstance(value, str):
        choice(key, value, ("one_shot", "exact"))
    else:
        require(value >= 0, key, value, "0 or more, one_shot or exact")


@dataclass(frozen=True)
class PrimalDualConfig:
    """PD-DPO, SACPO and O-PD-DPO; what is not here is as in the group `policy`."""

    reward_epochs: int = 8  # of the first stage, DPO on reward preferences
    epochs: int = 16  # of the second, on cost preferences
    pairs: str = "data"  # data; complete: every pair of all responses, the closed-form world only
    labels: str = "bernoulli"  # bernoulli: one answer of an annotator a pair; soft: their expectation
    feedback: str = "binary"  # of the dual step. binary: an oracle that says safe or unsafe; score: the cost scorer
    asks: int = 1000  # binary: at most so many questions about one response
    online: int = 128  # o_pd_dpo: new pairs per prompt and round
    bonus: float = 0.1  # o_pd_dpo: weight of the exploration bonus, reward units; 0: off

    def __post_init__(self) -> None:
        require(self.reward_epochs >= 1, "primal_dual.reward_epochs", self.reward_epochs, "at least 1")
        require(self.epochs >= 1, "primal_dual.epochs", self.epochs, "at least 1")
        choice("primal_dual.pairs", self.pairs, ("data", "complete"))
        choice("primal_dual.labels", self.labels, ("bernoulli", "soft"))
        choice("primal_dual.feedback", self.feedback, ("binary", "score"))
        require(self.asks >= 2, "primal_dual.asks", self.asks, "at least 2")
        require(self.online >= 0, "primal_dual.online", self.online, "0 (off) or more")
        require(self.bonus >= 0, "primal_dual.bonus", self.bonus, "0 (off) or more")


@dataclass(frozen=True)
class PPOConfig:
    """PPO-Lagrangian (Safe RLHF); beta and the limit are those of the groups `policy` and `constraint`."""

    rounds: int = 64  # of sampling and training
    samples_per_prompt: int = 32  # episodes per prompt and round
    passes: int = 2  # over the episodes of a round
    batch_size: int = 256  # episodes
    lr: float = 1e-3
    critic_lr: float = 2e-3
    lr_final: float = 0.05  # the last round's learning rate as a share of the first's
    kl: float = 0.0  # coefficient of both KL streams, reward per nat; 0: policy.beta / (1 + lambda), the problem of the others
    clip: float = 0.2  # of the probability ratio
    value_clip: float = 5.0  # how far a value may move from its old one
    score_clip: float = 50.0  # rewards and costs of an episode, +-
    gae_lambda: float = 0.95
    gamma: float = 1.0
    ptx: float = 0.0  # weight of the demonstrations' negative log-likelihood; Safe RLHF's script: 16
    lambda_init: float = 1.0  # more than 0: the log update cannot leave 0
    lambda_lr: float = 0.1
    window: int = 128  # episodes whose mean cost steps lambda

    def __post_init__(self) -> None:
        for key in ("rounds", "passes", "batch_size", "window"):
            require(getattr(self, key) >= 1, f"ppo.{key}", getattr(self, key), "at least 1")
        require(self.samples_per_prompt >= 2, "ppo.samples_per_prompt", self.samples_per_prompt, "at least 2")
        for key in ("lr", "critic_lr", "clip", "value_clip", "score_clip", "lambda_init", "lambda_lr"):
            require(getattr(self, key) > 0, f"ppo.{key}", getattr(self, key), "more than 0")
        for key in ("lr_final", "gamma"):
            require(0 < getattr(self, key) <= 1, f"ppo.{key}", getattr(self, key), "(0, 1]")
        require(0 <= self.gae_lambda <= 1, "ppo.gae_lambda", self.gae_lambda, "[0, 1]")
        for key in ("kl", "ptx"):
            require(getattr(self, key) >= 0, f"ppo.{key}", getattr(self, key), "0 or more")
