"""Single answers as pairs: BeaverTails labels answers one by one, and a policy learns from two answers to one prompt."""

from collections.abc import Sequence
from itertools import chain, pairwise, zip_longest

from cdpo_lightning.data.records import LabelledAnswer, PreferencePair


def pair_answers(answers: Sequence[LabelledAnswer]) -> list[PreferencePair]:
    """Each answer with the next one to its prompt, safe and unsafe ones in turn; prompts and answers in their order.

    n answers make n - 1 pairs, and none is left out but the only answer to its prompt. A pair has both kinds of label that
    the cost model learns from: the safety of each answer, and which is safer where exactly one is safe.
    """
    by_prompt: dict[str, list[LabelledAnswer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    return [_pair(*two) for own in by_prompt.values() for two in pairwise(_in_turn(own))]


def _in_turn(answers: list[LabelledAnswer]) -> list[LabelledAnswer]:
    sides = [a for a in answers if a.safe], [a for a in answers if not a.safe]
    first, second = sides if answers[0].safe else sides[::-1]
    return [answer for answer in chain(*zip_longest(first, second)) if answer is not None]


def _pair(first: LabelledAnswer, second: LabelledAnswer) -> PreferencePair:
    safer = None if first.safe == second.safe else int(second.safe)
    return PreferencePair(
        first.prompt, first.response, second.response, safer=safer, safe_0=first.safe, safe_1=second.safe, row=first.row
    )
