"""Text to token ids: prompt templates, and packed rows of one prompt with several responses."""
