"""Files on disk: the artifact store, atomic files, the training history and the folder of a run."""
