"""What Hydra finds of ours: the launcher of `-m`, the folder `sweeps/`, and the search that asks Optuna."""
