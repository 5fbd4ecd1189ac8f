"""Benchmarks of the training update, acting and replay."""
