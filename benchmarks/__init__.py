"""Benchmarks of learning and of speed, run as modules from the root of the repository. See ``README.md``."""
