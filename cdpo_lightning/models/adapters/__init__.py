"""Low-rank adapters, and the 4-bit weights under them."""
