"""The language model: loading, its forward pass over packed rows, where it is kept."""
