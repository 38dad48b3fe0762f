"""What a policy is worth: measured on its own samples, compared with others, and exactly where that is possible."""
