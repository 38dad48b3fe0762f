"""The audit of records: counts of their faults, and a policy for contradictory labels.

Faults of a pair (they depend on texts and labels only, not on the location in a file):

* empty: the prompt or a response is blank. ties: both responses are equal. Both are dropped and enter no other count.
* missing: no label at all. Such pairs are kept, because policy training needs no labels.
* duplicates: prompt, responses and labels equal those of an earlier row. both_orders: they do after swapping the responses.
* contradictory_labels: the row labels a response safe or unsafe, and another row with the same prompt labels it otherwise.
* contradictory_preferences: another row with the same two responses, in either order, has the other one as safer, or better.
* safer_is_unsafe: within the row, the safer response is labelled unsafe and the other one safe.
* contradictions: rows with one or more of the last three faults.

Policies: `keep` only counts the contradictions; `drop` removes every row with one; `error` stops at the first; `flip` makes
the labels agree: a safety label becomes the majority of the labels of that response; `safer` becomes the safe response if
exactly one is safe, otherwise the majority; `better` becomes the majority. Every row has one vote, also a duplicate, which
may come from a second annotator; a row with a tied vote is dropped. `flipped` counts the rows whose labels changed.
After every policy, only the first of equal rows, in either order of responses, is kept. The order of rows never changes.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import sha256
from typing import Any, Protocol, TypeVar

from cdpo_lightning.data.audit.votes import count_votes, label_claim, pair_claims, pair_faults, repair_label, repair_pair
from cdpo_lightning.data.records import AuditReport, Demonstration, LabelledAnswer, PreferencePair
from cdpo_lightning.errors import ConfigError, DataError

POLICIES = ("drop", "flip", "keep", "error")


class _HasPrompt(Protocol):
    @property
    def prompt(self) -> str: ...


Record = TypeVar("Record", bound=_HasPrompt)
Labelled = TypeVar("Labelled", PreferencePair, LabelledAnswer)


def audit_pairs(pairs: Sequence[PreferencePair], on_conflict: str) -> tuple[list[PreferencePair], AuditReport]:
    """Return the pairs to train on and the counts; the docstring of the module defines faults and policies.

    Raises:
        ConfigError: the policy is unknown.
        DataError: the policy is `error` and a row contradicts another, or itself.
    """
    filled = [pair for pair in pairs if _is_filled(pair.prompt, *pair.responses)]
    sound = [pair for pair in filled if pair.response_0 != pair.response_1]
    votes = count_votes(claim for pair in sound for claim in pair_claims(pair).values())
    faults = [pair_faults(pair, votes) for pair in sound]
    resolved = _resolve(sound, faults, lambda pair: repair_pair(pair, votes), on_conflict)
    kept = _without_repeats(resolved, _unordered)
    distinct = set(sound)
    report = AuditReport(
        rows=len(pairs),
        kept=len(kept),
        empty=len(pairs) - len(filled),
        ties=len(filled) - len(sound),
        missing=sum(not pair_claims(pair) for pair in sound),
        duplicates=len(sound) - len(distinct),
        both_orders=len(distinct) - len({_unordered(pair) for pair in distinct}),
        flipped=_count_changed(sound, resolved),
        **_count_faults(faults),
    )
    return kept, report


def audit_labels(labels: Sequence[LabelledAnswer], on_conflict: str) -> tuple[list[LabelledAnswer], AuditReport]:
    """Return the single answers to train on and the counts; only empty, duplicates, contradictory_labels and flipped can occur.

    Raises:
        ConfigError: the policy is unknown.
        DataError: the policy is `error` and two rows label one answer differently.
    """
    sound = [label for label in labels if _is_filled(label.prompt, label.response)]
    votes = count_votes(label_claim(label) for label in sound)
    faults = [["contradictory_labels"] * (len(votes[label_claim(label)[0]]) > 1) for label in sound]
    resolved = _resolve(sound, faults, lambda label: repair_label(label, votes), on_conflict)
    kept = _without_repeats(resolved, lambda label: label)
    report = AuditReport(
        rows=len(labels),
        kept=len(kept),
        empty=len(labels) - len(sound),
        duplicates=len(sound) - len(set(sound)),
        flipped=_count_changed(sound, resolved),
        **_count_faults(faults),
    )
    return kept, report


def audit_demonstrations(items: Sequence[Demonstration]) -> tuple[list[Demonstration], AuditReport]:
    """Return the demonstrations without blank ones and repeats, and the counts."""
    sound = [item for item in items if _is_filled(item.prompt, item.response)]
    kept = _without_repeats(sound, lambda item: item)
    empty, duplicates = len(items) - len(sound), len(sound) - len(kept)
    return kept, AuditReport(len(items), len(kept), empty=empty, duplicates=duplicates)


def split_by_prompt(items: Iterable[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Return (train, held out): about `fraction` of the prompts are held out, each with all its rows.

    The side of a prompt depends on (seed, prompt) alone, not on other rows or their order. With few prompts, one side may
    therefore be empty.

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


def _resolve(
    rows: list[Labelled], faults: list[list[str]], repair: Callable[[Labelled], Labelled | None], on_conflict: str
) -> list[Labelled | None]:
    """Return every row after the policy; None where it is dropped."""
    if on_conflict not in POLICIES:
        raise ConfigError(f"on_conflict: got {on_conflict!r}, expected one of {', '.join(POLICIES)}; choose one")
    if on_conflict == "error" and any(faults):
        row, kinds = next((row, kinds) for row, kinds in zip(rows, faults, strict=True) if kinds)
        location = row.row or f"the row with prompt {row.prompt[:40]!r}"
        raise DataError(f"{location}: {', '.join(kinds)}, expected labels that agree; correct it, or drop or flip them")
    if on_conflict == "flip":
        return [repair(row) for row in rows]
    return [None if kinds and on_conflict == "drop" else row for row, kinds in zip(rows, faults, strict=True)]


def _without_repeats(rows: Iterable[Any], key: Callable[[Any], Hashable]) -> list[Any]:
    """Return the first row of each key; None rows are left out."""
    first: dict[Hashable, Any] = {}
    for row in rows:
        if row is not None:
            first.setdefault(key(row), row)
    return list(first.values())


def _unordered(pair: PreferencePair) -> Hashable:
    """Return a key that is equal for two pairs with the same responses and labels, in either order."""
    return pair.prompt, frozenset(pair.responses), frozenset(pair_claims(pair).values())


def _count_changed(before: Sequence[Labelled], after: Sequence[Labelled | None]) -> int:
    return sum(new is not None and new != old for old, new in zip(before, after, strict=True))


def _count_faults(faults: list[list[str]]) -> dict[str, int]:
    counts = Counter(fault for row in faults for fault in row)
    return {"contradictions": sum(map(bool, faults)), **counts}


def _is_filled(*texts: str) -> bool:
    return all(text.strip() for text in texts)
