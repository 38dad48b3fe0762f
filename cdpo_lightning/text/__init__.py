"""Text to token ids: templates, and rows of one prompt with several responses."""
