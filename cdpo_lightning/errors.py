"""The errors for users: each message is one line with the key, file or row, the value, what was expected and what to do.

`run.py` prints a `CDPOError` as `error: ...` and exits with status 2. Every kind is a standard error too, so that library users
need not know ours.
"""


class CDPOError(Exception):
    """An error that the user can correct: it is reported on one line, with exit status 2."""


class ConfigError(CDPOError, ValueError):
    """A key of the configuration is unknown, of the wrong type or out of range."""


class DataError(CDPOError, ValueError):
    """A file or a row of the data is missing, unreadable or breaks its contract."""


class ModelError(CDPOError, ValueError):
    """A model folder is missing, incomplete or unfit for its role."""


class NumericsError(CDPOError, ArithmeticError):
    """A number that must be finite, or must agree with another, does not."""


class RankError(CDPOError, RuntimeError):
    """One of the processes of a run has ended before the others."""


class StorageError(CDPOError, OSError):
    """A file could not be written whole (no space, no permission)."""
