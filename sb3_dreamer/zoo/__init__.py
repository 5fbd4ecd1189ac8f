"""DreamerV3 in RL Zoo: registration, the sampler of hyperparameters, and where the presets lie."""
