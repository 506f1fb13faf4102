"""Benchmarks: `run` of each prints a table and returns its numbers, with a "summary"."""
