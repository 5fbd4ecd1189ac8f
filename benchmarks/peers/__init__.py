"""Our training update next to those of other implementations."""
