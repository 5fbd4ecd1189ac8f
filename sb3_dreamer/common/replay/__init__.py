"""Parts of the replay buffer: storage on the host, a copy on the device, and writing latents back."""
