"""Votes on labels: each label of a row is an answer to a question, and contradictory rows answer a question differently.

Questions are "is this response safe?" and "which of these two responses is safer (better)?".
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any

from cdpo_lightning.data.records import LabelledAnswer, PreferencePair

Claim = tuple[Hashable, Any]  # question, answer
Votes = dict[Hashable, Counter[Any]]


def pair_claims(pair: PreferencePair) -> dict[str, Claim]:
    """Return {field: claim} for each label the pair has; a preference answers with the text, so the order does not matter."""
    answers = frozenset(pair.responses)
    claims = {
        "safe_0": (("safe", pair.prompt, pair.response_0), pair.safe_0),
        "safe_1": (("safe", pair.prompt, pair.response_1), pair.safe_1),
        "safer": (("safer", pair.prompt, answers), None if pair.safer is None else pair.responses[pair.safer]),
        "better": (("better", pair.prompt, answers), None if pair.better is None else pair.responses[pair.better]),
    }
    return {field: claim for field, claim in claims.items() if claim[1] is not None}


def pair_faults(pair: PreferencePair, votes: Votes) -> list[str]:
    """Return the contradictions the pair is part of, as `AuditReport` names them."""
    contested = {field for field, (question, _) in pair_claims(pair).items() if len(votes[question]) > 1}
    tests = {
        "contradictory_labels": contested & {"safe_0", "safe_1"},
        "contradictory_preferences": contested & {"safer", "better"},
        "safer_is_unsafe": pair.safer is not None and pair.safe == ((True, False) if pair.safer else (False, True)),
    }
    return [fault for fault, present in tests.items() if present]


def repair_pair(pair: PreferencePair, votes: Votes) -> PreferencePair | None:
    """Return the pair with each label set to the majority; `safer` is the safe answer if only one is; None if a vote is tied."""
    elected = {field: majority(votes[question]) for field, (question, _) in pair_claims(pair).items()}
    safe = [majority(votes.get(("safe", pair.prompt, response), Counter())) for response in pair.responses]
    if "safer" in elected and set(safe) == {True, False}:
        elected["safer"] = pair.responses[safe.index(True)]
    if None in elected.values():
        return None
    labels: dict[str, Any] = {k: pair.responses.index(v) if isinstance(v, str) else v for k, v in elected.items()}
    return replace(pair, **labels)


def label_claim(label: LabelledAnswer) -> Claim:
    """Return the claim of a single answer's label."""
    return (label.prompt, label.response), label.safe


def repair_label(label: LabelledAnswer, votes: Votes) -> LabelledAnswer | None:
    """Return the answer with its label set to the majority; None if the vote is tied."""
    safe = majority(votes[label_claim(label)[0]])
    return None if safe is None else replace(label, safe=safe)


def count_votes(claims: Iterable[Claim]) -> Votes:
    """Return how often each question received each answer."""
    votes: Votes = defaultdict(Counter)
    for question, answer in claims:
        votes[question][answer] += 1
    return dict(votes)


def majority(votes: Counter[Any]) -> Any:
    """Return the most frequent answer; None if there is no vote, or a tie."""
    first, second, *_ = [*votes.most_common(2), (None, 0), (None, 0)]
    return first[0] if first[1] > second[1] else None
