"""Sampling of responses: with the policy itself and a key-value cache, or with vLLM."""
