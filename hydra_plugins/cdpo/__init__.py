"""Our Hydra plugins: the launcher of `-m`, the search path with `sweeps/`, and the search with Optuna."""
