"""Counters of the REFE, for `status` and metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

ALPHA = 0.05  # weight of the newest reply in a latency average


@dataclass(slots=True)
class RefeStats:
    """Totals since the start; latencies are averages over about the last 1/ALPHA replies.

    wait_s: seconds the engine thread slept or spun for replies
    hedged: overdue messages; replayed_pairs: (row, expert) pairs asked again of another EW
    masked_pairs: pairs left out because nobody served their expert
    latency_s: by EW, from the post of a message to the sight of its reply
    """

    dispatches: int = 0
    rows: int = 0
    messages: int = 0
    request_bytes: int = 0
    reply_bytes: int = 0
    wait_s: float = 0.0
    stale_replies: int = 0
    refused: int = 0
    peers_lost: int = 0
    deadlines: int = 0
    hedged: int = 0
    replayed_pairs: int = 0
    masked_pairs: int = 0
    latency_s: dict[str, float] = field(default_factory=dict)

    def answered(self, worker: str, nbytes: int, seconds: float) -> None:
        """A reply has come."""
        self.reply_bytes += nbytes
        old = self.latency_s.get(worker, seconds)
        self.latency_s[worker] = old + ALPHA * (seconds - old)

    def snapshot(self) -> dict[str, float]:
        """Flat names and numbers, for a Heartbeat: `refe_rows`, `refe_latency_s_ew0`, …"""
        flat = asdict(self)
        flat |= {f"latency_s_{worker}": s for worker, s in flat.pop("latency_s").items()}
        return {f"refe_{name}": float(value) for name, value in flat.items()}
