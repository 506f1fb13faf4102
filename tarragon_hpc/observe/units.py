"""Numbers in words."""

from __future__ import annotations

_STEPS = ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)


def size(nbytes: float) -> str:
    """`1.5 GiB`, `12.0 KiB`, `37 bytes`."""
    for unit, step in _STEPS:
        if nbytes >= step:
            return f"{nbytes / step:.1f} {unit}"
    return f"{nbytes:.0f} bytes"
