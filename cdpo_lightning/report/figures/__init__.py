"""The figures of a run, as PNG."""
