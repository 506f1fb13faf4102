"""Checkpoint store (CS): the KV of running requests, kept for whoever goes on with them."""
