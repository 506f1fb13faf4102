"""What an EW has done so far, for `status` and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from tarragon_hpc.expert.batching import REASONS


@dataclass(slots=True)
class Counters:
    """Since the start. Written by the expert loop only; read from any thread.

    requests: dispatches that arrived; refused: of these, answered with an error or not at all
    batches, calls, pairs: batches run, and the dispatches and (row, expert) pairs in them
    busy_s: seconds of running them; waited_s: seconds their first dispatches waited
    reasons: batches by the reason for which they were started
    """

    requests: int = 0
    refused: int = 0
    batches: int = 0
    calls: int = 0
    pairs: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0
    reasons: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    def ran(self, calls: int, pairs: int, seconds: float, waited: float, reason: str) -> None:
        """One batch."""
        self.batches += 1
        self.calls += calls
        self.pairs += pairs
        self.busy_s += seconds
        self.waited_s += waited
        self.reasons[reason] += 1

    def stats(self) -> dict[str, float]:
        """All of them by name, and the averages that follow."""
        batches = max(1, self.batches)
        return {
            "requests": self.requests,
            "refused": self.refused,
            "batches": self.batches,
            "rows": self.pairs,
            "rows_per_batch": self.pairs / batches,
            "requests_per_batch": self.calls / batches,
            "busy_s": self.busy_s,
            "waited_s": self.waited_s,
            **{f"batches_{reason}": count for reason, count in self.reasons.items()},
        }
