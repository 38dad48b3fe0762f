"""Evaluation and export of the trained policies, and of policies from outside."""
