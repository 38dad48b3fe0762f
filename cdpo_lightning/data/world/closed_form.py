"""The closed-form world: true scores of every text, and demonstrations and labels sampled from them.

Reward and cost are random functions of the topic and the slots, drawn from the seed. They are positively correlated by
default, so that the policy of highest reward violates the limit on the cost. Shape legend: G topics, K responses.
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

_INTERACTION = 0.35  # weight of the effects of pairs of slots and of topics; the main effects have weight 1


@dataclass(frozen=True)
class World:
    """Prompts, responses and their true scores; `topic` has the topic's index of each prompt.

    `scores_GK` has "reward" and "cost", each float64 with mean 0 and sd 1 over all topics and responses.
    """

    config: ClosedFormConfig
    prompts: list[str]
    topic: list[int]
    held_out: list[str]
    responses: list[str]
    scores_GK: dict[str, Tensor]
    off_grammar: dict[str, float]  # the scores of every text outside the grammar
    behaviour_logp_GK: Tensor  # nats; the distribution of the responses in the demonstrations and the pairs

    def score(self, name: str, prompt: str, response: str) -> float:
        """Return the true score `name` of any response to a prompt of this world."""
        k = self.response_index.get(response)
        return self.off_grammar[name] if k is None else float(self.scores_GK[name][self.topic_of[prompt], k])

    def truth(self, prompt: str, response: str) -> tuple[float, float]:
        """Return the true (reward, cost) of any response to a prompt of this world."""
        return self.score("reward", prompt, response), self.score("cost", prompt, response)

    @cached_property
    def response_index(self) -> dict[str, int]:
        """Return the index k of each response text."""
        return {text: k for k, text in enumerate(self.responses)}

    @cached_property
    def topic_of(self) -> dict[str, int]:
        """Return the topic's index of each prompt, including the held-out prompts."""
        return {**dict(zip(self.prompts, self.topic, strict=True)), **dict(grammar.held_out_prompts())}


def _effects(slots: int, generator: torch.Generator) -> Tensor:
    """Return a random function of topic and slots, [G, K]: effects of each slot, of slot and topic, and of neighbouring slots."""
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
    """Return the values scaled to mean 0 and sd 1 within each row."""
    centred = value - value.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt()


def _true_scores(config: ClosedFormConfig, slots: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the true reward and cost, [G, K], each with mean 0 and sd 1 over all entries, and with the configured correlation."""
    reward = _standardise(_effects(slots, generator))
    own = _standardise(_effects(slots, generator))
    own = _standardise(own - reward * (own * reward).mean(1, keepdim=True))  # uncorrelated with reward in each topic
    within = (1 - config.risk_share) ** 0.5
    rho = config.correlation / within
    risk = torch.tensor([-1.0] * len(grammar.BENIGN_TOPICS) + [1.0] * len(grammar.RISKY_TOPICS), dtype=torch.float64)
    cost = within * (rho * reward + (1 - rho**2) ** 0.5 * own) + config.risk_share**0.5 * risk[:, None]
    return {"reward": reward, "cost": cost}


def make_world(config: ClosedFormConfig, seed: int) -> World:
    """Return the world of `seed`; equal seeds give equal worlds."""
    draw = generator(seed, Stream.WORLD)
    slots = grammar.slot_count(config.responses)
    scores = _true_scores(config, slots, draw)
    behaviour = 0.7 * _standardise(_effects(slots, draw))
    prompts = grammar.prompts(config.prompts)
    return World(
        config=config,
        prompts=[text for text, _ in prompts],
        topic=[topic for _, topic in prompts],
        held_out=[text for text, _ in grammar.held_out_prompts()],
        responses=grammar.responses(slots),
        scores_GK=scores,
        off_grammar={"reward": config.off_grammar_reward, "cost": config.off_grammar_cost},
        behaviour_logp_GK=behaviour.log_softmax(1),
    )


def withheld(world: World) -> Tensor:
    """Return which responses are in no pair, bool [G, K]: the best of each topic by true reward - cost."""
    count = round(world.config.withheld * len(world.responses))
    value_GK = world.scores_GK["reward"] - world.scores_GK["cost"]
    best = value_GK.argsort(1, descending=True)[:, :count]
    return torch.zeros_like(value_GK, dtype=torch.bool).scatter(1, best, True)


def _sample_responses(
    world: World, prompt: str, count: int, generator: torch.Generator, excluded_GK: Tensor | None = None
) -> list[str]:
    """Return `count` draws from the behaviour distribution, with replacement, without the excluded responses."""
    topic = world.topic_of[prompt]
    weight = world.behaviour_logp_GK[topic].exp()
    weight = weight if excluded_GK is None else weight.masked_fill(excluded_GK[topic], 0.0)
    return [world.responses[int(k)] for k in torch.multinomial(weight, count, replacement=True, generator=generator)]


def demonstrations(world: World, prompts: list[str], per_prompt: int, seed: int) -> list[Demonstration]:
    """Return `per_prompt` draws from the behaviour distribution for each prompt."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Demonstration(prompt=prompt, response=text)
        for prompt in prompts
        for text in _sample_responses(world, prompt, per_prompt, generator)
    ]


def corrupt(response: str, words: list[str], rng: random.Random) -> str:
    """Return a text near `response` that is usually outside the grammar.

    With equal probability: a word removed, a word doubled, all words shuffled, a word replaced, the end cut, or random words.
    """
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
    """Return a pair with preferences sampled by Bradley-Terry on the true scores; safe is a true cost of at most 0."""
    (r0, c0), (r1, c1) = world.truth(prompt, first), world.truth(prompt, second)
    better, safer = torch.tensor([r1 - r0, c0 - c1], dtype=torch.float64).sigmoid().tolist()
    return PreferencePair(
        prompt=prompt,
        response_0=first,
        response_1=second,
        better=_draw(better, generator),
        safer=_draw(safer, generator),
        safe_0=c0 <= 0,
        safe_1=c1 <= 0,
    )


def preference_pairs(world: World, prompts: list[str], per_prompt: int, seed: int) -> list[PreferencePair]:
    """Return `per_prompt` labelled pairs of different responses for each prompt; in a share of them one response is corrupted."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    words, excluded = grammar.vocabulary(), withheld(world)
    pairs: list[PreferencePair] = []
    for number, prompt in enumerate(prompts, start=1):
        while len(pairs) < per_prompt * number:
            first, second = _sample_responses(world, prompt, 2, generator, excluded)
            if rng.random() < world.config.off_grammar_share:
                second = corrupt(second, words, rng)
                first, second = (first, second) if rng.random() < 0.5 else (second, first)
            if first != second:
                pairs.append(_label(world, prompt, first, second, generator))
    return pairs


def evaluation_prompts(world: World) -> list[EvaluationPrompt]:
    """Return all training prompts with the category benign or risky; the exact values are means over these prompts."""
    risky = len(grammar.BENIGN_TOPICS)
    return [
        EvaluationPrompt(prompt=p, categories=("risky" if t >= risky else "benign",))
        for p, t in zip(world.prompts, world.topic, strict=True)
    ]
