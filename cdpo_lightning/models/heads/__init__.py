"""Models with a scalar head: score models trained here, published score models, value models."""
