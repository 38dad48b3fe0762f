"""Rows that cannot be used: each has a reason, under which it is counted; `dataset.on_unusable` says what happens to it."""

from collections import Counter

from cdpo_lightning.errors import DataError


class UnusableRow(DataError):
    """A row that no record can be made of.

    Attributes:
        reason: a short name such as `not_json`, part of the metric that counts such rows.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnusableRows:
    """The unusable rows of one file, counted by reason.

    Args:
        policy: `error` raises the first one, `drop` leaves it out.
    """

    def __init__(self, policy: str = "error") -> None:
        self.policy = policy
        self.counts: Counter[str] = Counter()
        self._first = ""  # the message of the first one

    def add(self, row: UnusableRow) -> None:
        """Count a row.

        Raises:
            UnusableRow: the row itself, unless the policy is `drop`.
        """
        if self.policy != "drop":
            raise row
        self._first = self._first or str(row)
        self.counts[row.reason] += 1

    def summary(self) -> str:
        """Return the counts and the message of the first row as one line; empty if all rows can be used."""
        if not self.counts:
            return ""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.most_common())
        rows = "1 row" if self.counts.total() == 1 else f"{self.counts.total():,} rows"
        return f"{rows} cannot be used, left out ({reasons}); the first is {self._first}"
