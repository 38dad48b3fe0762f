"""Low-rank adapters, and weights in 4 bits beneath them."""
