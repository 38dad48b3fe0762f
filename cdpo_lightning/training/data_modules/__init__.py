"""Lightning data modules: pairs for preference optimization, rollouts for PPO, examples for supervised stages."""
