"""The compiled module, or why there is none.

`module` is `tarragon_hpc._native` unless `reason` says why it could not be imported (a pure-Python
install, say); ask `reason`, the type of `module` does not tell.
"""

from __future__ import annotations

__all__ = ["module", "reason"]

reason: str | None = None
try:
    from tarragon_hpc import _native as module
except ImportError as error:
    module = None  # type: ignore[assignment]
    reason = f"tarragon_hpc._native: {error}"
