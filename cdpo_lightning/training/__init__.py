"""Training with Lightning: the fit of one stage, and its modules, data modules, callbacks and strategies."""
