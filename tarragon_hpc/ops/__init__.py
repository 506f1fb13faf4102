"""Arithmetic of the experts: one contract (`base.py`), a native CPU kernel, torch, Triton."""
