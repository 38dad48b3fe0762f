"""The language model: loading, log-probabilities of packed rows, memory, compilation."""
