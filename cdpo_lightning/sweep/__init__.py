"""Runs the jobs of a sweep as processes, assigns devices to them and records their state and results."""
