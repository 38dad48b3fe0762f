"""Faster implementations: attention of packed rows, matrix products, log-probabilities of tokens."""
