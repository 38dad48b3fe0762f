"""Fast paths: attention of packed rows, products, the projection on the vocabulary."""
