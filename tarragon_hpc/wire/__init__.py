"""What crosses a process boundary: control messages, their framing, and who may speak."""
