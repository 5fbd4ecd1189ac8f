"""Faster implementations with the same results. They are not needed to understand the algorithm."""
