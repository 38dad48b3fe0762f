"""Runs the jobs of a sweep as processes: which are done, which run now and on which devices, and how each ended."""
