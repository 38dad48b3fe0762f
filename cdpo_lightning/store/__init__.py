"""What is kept on disk: artifacts named by what made them, whole files, the history and the folder of a run."""
