"""Scorers: numbers for (prompt, response), each with an identity for the store."""
