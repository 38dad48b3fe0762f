"""Evaluates and exports the trained policies, and evaluates external ones."""
