"""The audit: counts faults of labelled records, and resolves contradictions by a named policy."""
