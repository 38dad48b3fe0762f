"""Constraints on a policy: what is measured, its limit, how lambda is updated, and the dual round that every trainer calls."""
