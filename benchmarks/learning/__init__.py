"""Learning benchmark: returns on small tasks."""
