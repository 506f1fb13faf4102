"""How a batch is doing, as one line. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def batch_line(batch: Mapping[str, Any]) -> str:
    """`batch: 3 of 9 done, 120 tokens/s, about 50 s left`: of "batch" in a run's status."""
    words = f"batch: {batch['done']} of {batch['total']} done, {batch['tokens_per_s']:.0f} tokens/s"
    for key in ("refused", "failed"):
        if batch[key]:
            words += f", {batch[key]} {key}"
    if batch["eta_s"]:
        words += f", about {in_words(batch['eta_s'])} left"
    return words


def in_words(seconds: float) -> str:
    """`50 s`, `12 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
