"""Lightning callbacks: the dual loop, the history, checkpoints, speed, compute, samples and W&B."""
