"""Networks with a scalar head: score models trained here, published ones, value models."""
