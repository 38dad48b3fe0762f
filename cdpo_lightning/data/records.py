"""The record types of the data: text and labels, no tensors.

`row` is the location a record was read from, such as `pku.jsonl:17`, for error messages; it does not take part in comparisons.
Field names are part of `data/hash` and of the keys of stored artifacts: renaming one changes both.
"""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt in stored order; a label is None if the source does not give it.

    `better` and `safer` are the index (0 or 1) of the more helpful and of the less harmful response; `safe_0` and `safe_1`
    say whether a response is safe.
    """

    prompt: str
    response_0: str
    response_1: str
    better: int | None = None
    safer: int | None = None
    safe_0: bool | None = None
    safe_1: bool | None = None
    row: str = field(default="", compare=False)

    @property
    def responses(self) -> tuple[str, str]:
        """Return both responses, in the order that `better` and `safer` index."""
        return self.response_0, self.response_1

    @property
    def safe(self) -> tuple[bool | None, bool | None]:
        """Return the safety label of each response, in the same order."""
        return self.safe_0, self.safe_1


@dataclass(frozen=True)
class LabelledAnswer:
    """One response and whether it is safe; the sign term of the cost loss learns from it."""

    prompt: str
    response: str
    safe: bool
    row: str = field(default="", compare=False)


@dataclass(frozen=True)
class Demonstration:
    """One response to imitate in supervised fine-tuning."""

    prompt: str
    response: str
    row: str = field(default="", compare=False)


@dataclass(frozen=True)
class EvaluationPrompt:
    """One prompt that the policies answer in the evaluation; results are also grouped by `categories`, which may be empty."""

    prompt: str
    categories: tuple[str, ...] = ()
    row: str = field(default="", compare=False)


@dataclass(frozen=True)
class MultipleChoice:
    """One question with its options, each (text, whether it is true): exactly one of `mc1` is true, one or more of `mc2`."""

    question: str
    mc1: tuple[tuple[str, bool], ...]
    mc2: tuple[tuple[str, bool], ...]
    row: str = field(default="", compare=False)


@dataclass(frozen=True)
class AuditReport:
    """Counts of rows read, rows kept and rows with each fault; the module `cdpo_lightning.data.audit.audit` defines them.

    A row with two faults is counted under both, so the faults need not add up to `dropped`.
    """

    rows: int
    kept: int
    empty: int = 0
    ties: int = 0
    missing: int = 0
    duplicates: int = 0
    both_orders: int = 0
    contradictions: int = 0
    contradictory_labels: int = 0
    contradictory_preferences: int = 0
    safer_is_unsafe: int = 0
    flipped: int = 0

    @property
    def dropped(self) -> int:
        """Return the number of rows that were not kept."""
        return self.rows - self.kept

    def as_metrics(self, prefix: str = "data", unit: str = "pairs") -> dict[str, int]:
        """Return the counts as flat metrics, such as `data/dropped`; the rows kept are `<prefix>/<unit>`."""
        counts = asdict(self)
        counts[unit] = counts.pop("kept")
        counts["dropped"] = self.dropped
        return {f"{prefix}/{name}": count for name, count in counts.items()}
