"""Sampling of responses, by torch or by vLLM."""
