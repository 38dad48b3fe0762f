"""What is wrong with a list of records, counted; and a named policy for what contradicts itself.

Faults of a pair (the texts decide, never where they stand in a file):

* empty: the prompt or a response is blank. ties: both responses are equal. Both are dropped and enter no other count.
* missing: no label at all. Kept: policy training needs none; whoever needs a label must look for it.
* duplicates: prompt, responses and labels equal an earlier row's. both_orders: they do once the responses are swapped.
* contradictory_labels: the row marks an answer safe or unsafe which another row of the same prompt marks otherwise.
* contradictory_preferences: another row of the same two answers, in either order, names the other safer, or better.
* safer_is_unsafe: the answer named safer is marked unsafe while the other is marked safe, in the same row.
* contradictions: rows with one or more of the last three.

Policies: `keep` only counts them; `drop` removes every row concerned; `error` stops at the first; `flip` makes labels
agree: a mark becomes the majority of the marks of that answer; `safer` names the safe answer if exactly one is, else
the majority's choice; `better` likewise the majority's. Every row has one vote, repeats included, for a repeat may be a
second annotator; a row that rests on an even vote is dropped. `flipped` counts the rows whose labels changed.
After any policy, of rows that agree in everything, in either order, the first is kept. The order of rows never changes.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import sha256
from typing import Any, Protocol, TypeVar

from cdpo_lightning.data.audit.votes import label_claim, pair_claims, pair_faults, repair_label, repair_pair, vote
from cdpo_lightning.data.records import AuditReport, Demonstration, LabelledAnswer, PreferencePair
from cdpo_lightning.errors import ConfigError, DataError

POLICIES = ("drop", "flip", "keep", "error")


class _HasPrompt(Protocol):
    @property
    def prompt(self) -> str: ...


Record = TypeVar("Record", bound=_HasPrompt)
Labelled = TypeVar("Labelled", PreferencePair, LabelledAnswer)


def audit_pairs(pairs: Sequence[PreferencePair], on_conflict: str) -> tuple[list[PreferencePair], AuditReport]:
    """The pairs to train on, and the counts; the module's docstring defines faults and policies.

    Raises:
        ConfigError: no such policy.
        DataError: the policy is `error` and a row contradicts another, or itself.
    """
    filled = [pair for pair in pairs if _is_filled(pair.prompt, *pair.responses)]
    sound = [pair for pair in filled if pair.response_0 != pair.response_1]
    votes = vote(claim for pair in sound for claim in pair_claims(pair).values())
    faults = [pair_faults(pair, votes) for pair in sound]
    settled = _settle(sound, faults, lambda pair: repair_pair(pair, votes), on_conflict)
    kept = _firsts(settled, _unordered)
    distinct = set(sound)
    report = AuditReport(
        rows=len(pairs),
        kept=len(kept),
        empty=len(pairs) - len(filled),
        ties=len(filled) - len(sound),
        missing=sum(not pair_claims(pair) for pair in sound),
        duplicates=len(sound) - len(distinct),
        both_orders=len(distinct) - len({_unordered(pair) for pair in distinct}),
        flipped=_count_changed(sound, settled),
        **_count_faults(faults),
    )
    return kept, report


def audit_labels(labels: Sequence[LabelledAnswer], on_conflict: str) -> tuple[list[LabelledAnswer], AuditReport]:
    """The same for single answers: empty, duplicates, contradictory_labels, flipped; other counts stay 0.

    Raises:
        ConfigError: no such policy.
        DataError: the policy is `error` and two rows mark one answer differently.
    """
    sound = [label for label in labels if _is_filled(label.prompt, label.response)]
    votes = vote(label_claim(label) for label in sound)
    faults = [["contradictory_labels"] * (len(votes[label_claim(label)[0]]) > 1) for label in sound]
    settled = _settle(sound, faults, lambda label: repair_label(label, votes), on_conflict)
    kept = _firsts(settled, lambda label: label)
    report = AuditReport(
        rows=len(labels),
        kept=len(kept),
        empty=len(labels) - len(sound),
        duplicates=len(sound) - len(set(sound)),
        flipped=_count_changed(sound, settled),
        **_count_faults(faults),
    )
    return kept, report


def audit_demonstrations(items: Sequence[Demonstration]) -> tuple[list[Demonstration], AuditReport]:
    """The demonstrations that are neither blank nor repeats, and the counts."""
    sound = [item for item in items if _is_filled(item.prompt, item.response)]
    kept = _firsts(sound, lambda item: item)
    empty, duplicates = len(items) - len(sound), len(sound) - len(kept)
    return kept, AuditReport(len(items), len(kept), empty=empty, duplicates=duplicates)


def split_by_prompt(items: Iterable[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(train, held out): about `fraction` of the prompts are held out, each with all its rows.

    A prompt's side depends on (seed, prompt) alone: no other row and no reordering moves it. Of a few prompts all may
    thus fall on one side.

    Raises:
        ConfigError: the fraction is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ConfigError(f"fraction held out: got {fraction}, expected 0 to 1; choose a share such as 0.1")
    sides: tuple[list[Record], list[Record]] = ([], [])
    for item in items:
        digest = sha256(f"{seed}:{item.prompt}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < fraction * 2**64].append(item)
    return sides


def _settle(
    rows: list[Labelled], faults: list[list[str]], repair: Callable[[Labelled], Labelled | None], on_conflict: str
) -> list[Labelled | None]:
    """Every row after the policy, None where it is dropped."""
    if on_conflict not in POLICIES:
        raise ConfigError(f"on_conflict: got {on_conflict!r}, expected one of {', '.join(POLICIES)}; choose one")
    if on_conflict == "error" and any(faults):
        row, kinds = next((row, kinds) for row, kinds in zip(rows, faults, strict=True) if kinds)
        location = row.row or f"the row of {row.prompt[:40]!r}"
        raise DataError(f"{location}: {', '.join(kinds)}, expected labels that agree; correct it, or drop or flip them")
    if on_conflict == "flip":
        return [repair(row) for row in rows]
    return [None if kinds and on_conflict == "drop" else row for row, kinds in zip(rows, faults, strict=True)]


def _firsts(rows: Iterable[Any], key: Callable[[Any], Hashable]) -> list[Any]:
    """The rows that are there, each but its repeats: a key maps to the first row that has it."""
    result: dict[Hashable, Any] = {}
    for row in rows:
        if row is not None:
            result.setdefault(key(row), row)
    return list(result.values())


def _unordered(pair: PreferencePair) -> Hashable:
    """Equal for two pairs that say the same in the same or in opposite orders."""
    return pair.prompt, frozenset(pair.responses), frozenset(pair_claims(pair).values())


def _count_changed(before: Sequence[Labelled], after: Sequence[Labelled | None]) -> int:
    return sum(new is not None and new != old for old, new in zip(before, after, strict=True))


def _count_faults(faults: list[list[str]]) -> dict[str, int]:
    counts = Counter(fault for row in faults for fault in row)
    return {"contradictions": sum(map(bool, faults)), **counts}


def _is_filled(*texts: str) -> bool:
    return all(text.strip() for text in texts)
