"""Preference data as types, before any of it is a tensor: text and labels, nothing else.

`row` is the place a record came from, such as `pku.jsonl:17`; errors name it, and no comparison of contents uses it.
"""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt in the order they are stored; a label that is None was not given.

    `better` and `safer` are the index (0 or 1) of the more helpful and of the less harmful response.
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
        """Both responses, indexed as `better` and `safer` index them."""
        return self.response_0, self.response_1

    @property
    def safe(self) -> tuple[bool | None, bool | None]:
        """The safety label of each response."""
        return self.safe_0, self.safe_1


@dataclass(frozen=True)
class LabelledAnswer:
    """One response and whether it is safe: what a cost model's sign is learnt from."""

    prompt: str
    response: str
    safe: bool
    row: str = field(default="", compare=False)


@dataclass(frozen=True)
class Demonstration:
    """One response to imitate: supervised fine-tuning."""

    prompt: str
    response: str
    row: str = field(default="", compare=False)


@dataclass(frozen=True)
class EvaluationPrompt:
    """One prompt to answer and be judged on; `categories` group the results (none where the source has none)."""

    prompt: str
    categories: tuple[str, ...] = ()
    row: str = field(default="", compare=False)


@dataclass(frozen=True)
class MultipleChoice:
    """One question with its options, each true or false: of `mc1` exactly one is true, of `mc2` one or more."""

    question: str
    mc1: tuple[tuple[str, bool], ...]
    mc2: tuple[tuple[str, bool], ...]
    row: str = field(default="", compare=False)


@dataclass(frozen=True)
class AuditReport:
    """How many rows came, were kept, and had which fault; `cdpo_lightning.data.audit.audit` defines every count.

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
        """Rows that were not kept, for whatever reason."""
        return self.rows - self.kept

    def as_metrics(self, prefix: str = "data", unit: str = "pairs") -> dict[str, int]:
        """The counts as flat metrics, such as `data/dropped`; the rows kept stand under `<prefix>/<unit>`."""
        counts = asdict(self)
        counts[unit] = counts.pop("kept")
        counts["dropped"] = self.dropped
        return {f"{prefix}/{name}": count for name, count in counts.items()}
