"""Lightning modules: SFT, score models, the DPO policy, PPO."""
