"""Parts of the replay buffer: storage in memory, on disk and on the device, and writing latents back."""
