"""Data sets of single answers with a safety label; for the policy they are paired by prompt."""
