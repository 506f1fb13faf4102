"""What happened, when, and how much: log, timeline, metrics."""
