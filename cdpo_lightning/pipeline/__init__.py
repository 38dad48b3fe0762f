"""The steps of a run: prepare data and models, train the methods, evaluate and export the policies, check before training."""
