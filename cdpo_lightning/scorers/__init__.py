"""Scorers, which give every (prompt, response) a number, and have an identity for the store."""
