"""The closed-form world: its words, its true scores, and the data that annotators would give on it."""
