"""Pairs made of single labelled answers, such as those of BeaverTails: the policy learns from two answers to one prompt."""

from collections.abc import Sequence
from itertools import chain, pairwise, zip_longest

from cdpo_lightning.data.records import LabelledAnswer, PreferencePair


def pair_answers(answers: Sequence[LabelledAnswer]) -> list[PreferencePair]:
    """Return pairs of consecutive answers to the same prompt, after ordering them so that safe and unsafe ones alternate.

    n answers to a prompt give n - 1 pairs; only a single answer is in no pair. The order of prompts, and of the safe and
    the unsafe answers, is kept. A pair has both kinds of label that the cost model learns from: `safe_0` and `safe_1`, and
    `safer` where exactly one answer is safe.
    """
    by_prompt: dict[str, list[LabelledAnswer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    return [_pair(*two) for group in by_prompt.values() for two in pairwise(_alternating(group))]


def _alternating(answers: list[LabelledAnswer]) -> list[LabelledAnswer]:
    """Return the answers with safe and unsafe ones in turn, starting with the first answer's kind, the surplus last."""
    sides = [a for a in answers if a.safe], [a for a in answers if not a.safe]
    first, second = sides if answers[0].safe else sides[::-1]
    return [answer for answer in chain(*zip_longest(first, second)) if answer is not None]


def _pair(first: LabelledAnswer, second: LabelledAnswer) -> PreferencePair:
    safer = None if first.safe == second.safe else int(second.safe)
    return PreferencePair(
        first.prompt, first.response, second.response, safer=safer, safe_0=first.safe, safe_1=second.safe, row=first.row
    )
