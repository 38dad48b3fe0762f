"""Evaluates policies: on their own samples, compared with one another, and exactly in the closed-form world."""
