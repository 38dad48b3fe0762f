"""One page over all runs of a sweep."""
