"""Lightning callbacks: the dual loop, the run's history, checkpoints, speed, budgets, samples and W&B."""
