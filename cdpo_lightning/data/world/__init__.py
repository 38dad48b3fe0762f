"""The closed-form world: its texts, its true scores, and data sampled from it in place of annotators."""
