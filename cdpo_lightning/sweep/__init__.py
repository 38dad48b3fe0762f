"""A sweep's jobs as processes: which are done, which run now, on which devices, and what became of them."""
