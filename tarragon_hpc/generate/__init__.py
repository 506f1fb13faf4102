"""Offline generation: a file of requests in, a file of results out, through a run's gateway."""
