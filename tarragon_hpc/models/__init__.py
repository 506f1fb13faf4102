"""Checkpoints: what a directory holds, and tiny ones for trying things out. No torch at import."""
