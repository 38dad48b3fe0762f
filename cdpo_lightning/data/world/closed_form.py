"""The closed-form world: true reward and cost of every text, and the data that people would give on it.

Rewards and costs are functions of the topic and the slots, drawn from the seed; helpful and harmful pull together, so an
unconstrained policy breaks the limit. Shape legend: G topics, K responses, S slots.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cdpo_lightning.config import ClosedFormConfig
from cdpo_lightning.data.records import Demonstration, EvaluationPrompt, PreferencePair
from cdpo_lightning.data.world import grammar
from cdpo_lightning.streams import Stream, generator

_INTERACTION = 0.35  # weight of pairwise slot effects and of topic-specific ones, beside 1 for the main effects


@dataclass(frozen=True)
class World:
    """Prompts, responses, and their truth: `reward_GK` and `cost_GK`, both mean 0 and sd 1 over all topics and responses."""

    config: ClosedFormConfig
    prompts: list[str]
    topic: list[int]
    held_out: list[str]
    responses: list[str]
    reward_GK: Tensor
    cost_GK: Tensor
    behaviour_GK: Tensor  # log-probabilities of the people who wrote the demonstrations and the data set's responses

    def truth(self, prompt: str, response: str) -> tuple[float, float]:
        """True (reward, cost) of any text; one outside the grammar has the world's bad values."""
        k = self.index.get(response)
        if k is None:
            return self.config.off_grammar_reward, self.config.off_grammar_cost
        g = self.topic_of[prompt]
        return float(self.reward_GK[g, k]), float(self.cost_GK[g, k])

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each response text."""
        return {text: k for k, text in enumerate(self.responses)}

    @cached_property
    def topic_of(self) -> dict[str, int]:
        """The topic of each prompt, the held-out ones included."""
        return {**dict(zip(self.prompts, self.topic, strict=True)), **dict(grammar.held_out_prompts())}


def _effects(slots: int, generator: torch.Generator) -> Tensor:
    """One random function [G, K] of topic and slots: main effects, topic-specific ones and neighbouring slots' pairs."""
    topics, options = len(grammar.topics()), grammar.OPTIONS
    digits = torch.cartesian_prod(*[torch.arange(options)] * slots)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    value = torch.zeros(topics, digits.shape[0], dtype=torch.float64)
    for s in range(slots):
        main, specific = draw(1, options), draw(topics, options)
        value += (main + _INTERACTION * specific)[:, digits[:, s]]
    for s in range(slots - 1):
        value += _INTERACTION * draw(options, options)[digits[:, s], digits[:, s + 1]]
    return value


def _standardise(value: Tensor) -> Tensor:
    """Mean 0 and sd 1 within each row."""
    centred = value - value.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt()


def _reward_and_cost(config: ClosedFormConfig, slots: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """True reward and cost [G, K], each mean 0 and sd 1 over all entries, with the set correlation exactly."""
    reward = _standardise(_effects(slots, generator))
    own = _standardise(_effects(slots, generator))
    own = _standardise(own - reward * (own * reward).mean(1, keepdim=True))  # uncorrelated with reward in each topic
    within = (1 - config.risk_share) ** 0.5
    rho = config.correlation / within
    risk = torch.tensor([-1.0] * len(grammar.BENIGN_TOPICS) + [1.0] * len(grammar.RISKY_TOPICS), dtype=torch.float64)
    cost = within * (rho * reward + (1 - rho**2) ** 0.5 * own) + config.risk_share**0.5 * risk[:, None]
    return reward, cost


def make_world(config: ClosedFormConfig, seed: int) -> World:
    """The world of `seed`; equal seeds give equal worlds."""
    draw = generator(seed, Stream.WORLD)
    slots = grammar.slot_count(config.responses)
    reward, cost = _reward_and_cost(config, slots, draw)
    behaviour = 0.7 * _standardise(_effects(slots, draw))
    prompts = grammar.prompts(config.prompts)
    return World(
        config=config,
        prompts=[text for text, _ in prompts],
        topic=[topic for _, topic in prompts],
        held_out=[text for text, _ in grammar.held_out_prompts()],
        responses=grammar.responses(slots),
        reward_GK=reward,
        cost_GK=cost,
        behaviour_GK=behaviour.log_softmax(1),
    )


def withheld(world: World) -> Tensor:
    """Which responses no pair holds, bool [G, K]: the best of each topic by true reward - cost."""
    count = round(world.config.withheld * len(world.responses))
    best = (world.reward_GK - world.cost_GK).argsort(1, descending=True)[:, :count]
    return torch.zeros_like(world.reward_GK, dtype=torch.bool).scatter(1, best, True)


def _sample_responses(
    world: World, prompt: str, count: int, generator: torch.Generator, without: Tensor | None = None
) -> list[str]:
    topic = world.topic_of[prompt]
    weight = world.behaviour_GK[topic].exp()
    weight = weight if without is None else weight.masked_fill(without[topic], 0.0)
    return [world.responses[int(k)] for k in torch.multinomial(weight, count, replacement=True, generator=generator)]


def demonstrations(world: World, prompts: list[str], per_prompt: int, seed: int) -> list[Demonstration]:
    """What people answer: `per_prompt` draws of the behaviour for each prompt."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Demonstration(prompt=prompt, response=text)
        for prompt in prompts
        for text in _sample_responses(world, prompt, per_prompt, generator)
    ]


def corrupt(response: str, words: list[str], rng: random.Random) -> str:
    """A text near `response` but outside the grammar's order: a word lost, doubled, swapped, replaced, or the end cut."""
    tokens = response.split()
    i = rng.randrange(len(tokens))
    kind = rng.randrange(6)
    if kind == 0:
        tokens.pop(i)
    elif kind == 1:
        tokens.insert(i, tokens[i])
    elif kind == 2:
        rng.shuffle(tokens)
    elif kind == 3:
        tokens[i] = rng.choice(words)
    elif kind == 4:
        tokens = tokens[: max(1, i)]
    else:
        tokens = [rng.choice(words) for _ in range(rng.randint(1, 2 * len(tokens)))]
    return " ".join(tokens)


def _draw(probability: float, generator: torch.Generator) -> int:
    return int(torch.rand((), generator=generator, dtype=torch.float64) < probability)


def _label(world: World, prompt: str, first: str, second: str, generator: torch.Generator) -> PreferencePair:
    """A pair with sampled preferences (Bradley-Terry on the truth) and the signs of the true cost."""
    (r0, c0), (r1, c1) = world.truth(prompt, first), world.truth(prompt, second)
    sigmoid = torch.tensor([r1 - r0, c0 - c1], dtype=torch.float64).sigmoid().tolist()
    return PreferencePair(
        prompt=prompt,
        response_0=first,
        response_1=second,
        better=_draw(sigmoid[0], generator),
        safer=_draw(sigmoid[1], generator),
        safe_0=c0 <= 0,
        safe_1=c1 <= 0,
    )


def preference_pairs(world: World, prompts: list[str], per_prompt: int, seed: int) -> list[PreferencePair]:
    """`per_prompt` labelled pairs of different responses a prompt; a share has one response outside the grammar."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    words, without = grammar.vocabulary(), withheld(world)
    pairs: list[PreferencePair] = []
    for number, prompt in enumerate(prompts, start=1):
        while len(pairs) < per_prompt * number:
            first, second = _sample_responses(world, prompt, 2, generator, without)
            if rng.random() < world.config.off_grammar_share:
                second = corrupt(second, words, rng)
                first, second = (first, second) if rng.random() < 0.5 else (second, first)
            if first != second:
                pairs.append(_label(world, prompt, first, second, generator))
    return pairs


def evaluation_prompts(world: World) -> list[EvaluationPrompt]:
    """All training prompts: the exact values are over these."""
    risky = len(grammar.BENIGN_TOPICS)
    return [
        EvaluationPrompt(prompt=p, categories=("risky" if t >= risky else "benign",))
        for p, t in zip(world.prompts, world.topic, strict=True)
    ]
