"""What else a policy is judged by: against another policy, by category, over-refusal, TruthfulQA."""
