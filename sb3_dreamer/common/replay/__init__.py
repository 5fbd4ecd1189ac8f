"""The parts of the replay buffer: rows in memory, rows on the device, latents on their way back."""
