"""Training with Lightning: one fit, and the modules, data modules, callbacks and strategies that it is given."""
