"""The same numbers in less time. A reader of the algorithm may leave this folder closed."""
