"""Data as records, before any of it is a tensor: sources, audit, the closed-form world, pairs, batches."""
