"""What labels say, as votes: every label answers a question, and rows that disagree answer one question differently."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any

from cdpo_lightning.data.records import LabelledAnswer, PreferencePair

Votes = dict[Hashable, Counter[Any]]


def pair_claims(pair: PreferencePair) -> dict[str, tuple[Hashable, Any]]:
    """Each label the pair has, as field: (question, answer); preferences answer with the text, in either order."""
    answers = frozenset(pair.responses)
    claims = {
        "safe_0": (("safe", pair.prompt, pair.response_0), pair.safe_0),
        "safe_1": (("safe", pair.prompt, pair.response_1), pair.safe_1),
        "safer": (("safer", pair.prompt, answers), None if pair.safer is None else pair.responses[pair.safer]),
        "better": (("better", pair.prompt, answers), None if pair.better is None else pair.responses[pair.better]),
    }
    return {field: claim for field, claim in claims.items() if claim[1] is not None}


def pair_faults(pair: PreferencePair, votes: Votes) -> list[str]:
    """The contradictions the pair is in, as `AuditReport` names them."""
    contested = {field for field, (question, _) in pair_claims(pair).items() if len(votes[question]) > 1}
    tests = {
        "contradictory_labels": contested & {"safe_0", "safe_1"},
        "contradictory_preferences": contested & {"safer", "better"},
        "safer_is_unsafe": pair.safer is not None and pair.safe == ((True, False) if pair.safer else (False, True)),
    }
    return [fault for fault, is_there in tests.items() if is_there]


def repair_pair(pair: PreferencePair, votes: Votes) -> PreferencePair | None:
    """The pair with each label it has as voted; `safer` names the one safe answer; None where a vote is even."""
    agreed = {field: majority(votes[question]) for field, (question, _) in pair_claims(pair).items()}
    safe = [majority(votes.get(("safe", pair.prompt, response), Counter())) for response in pair.responses]
    if "safer" in agreed and set(safe) == {True, False}:
        agreed["safer"] = pair.responses[safe.index(True)]
    if None in agreed.values():
        return None
    labels: dict[str, Any] = {k: pair.responses.index(v) if isinstance(v, str) else v for k, v in agreed.items()}
    return replace(pair, **labels)


def label_claim(label: LabelledAnswer) -> tuple[Hashable, bool]:
    """(question, answer) of a single answer's label."""
    return (label.prompt, label.response), label.safe


def repair_label(label: LabelledAnswer, votes: Votes) -> LabelledAnswer | None:
    """The answer marked as voted; None where the vote is even."""
    safe = majority(votes[label_claim(label)[0]])
    return None if safe is None else replace(label, safe=safe)


def vote(claims: Iterable[tuple[Hashable, Any]]) -> Votes:
    """How often each question was answered in which way."""
    votes: Votes = defaultdict(Counter)
    for question, answer in claims:
        votes[question][answer] += 1
    return dict(votes)


def majority(votes: Counter[Any]) -> Any:
    """The answer most voted for; None where there is no vote, or an even one."""
    first, second, *_ = [*votes.most_common(2), (None, 0), (None, 0)]
    return first[0] if first[1] > second[1] else None
