"""DreamerV3 in RL Zoo: registration, hyperparameter sampler and presets."""
