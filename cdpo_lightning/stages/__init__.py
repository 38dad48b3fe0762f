"""The stages of a run, in order: bench, sft, scorers, constants, policy, judging. The store may spare the first four."""
