"""Notes what this AW exchanges with EWs and stores, if a trace is wanted (observe/trace.py)."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from tarragon_hpc.observe.trace import ExpertCall, Frame, Trace, trace_file, write_trace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tarragon_hpc.attention.forwarder import Forwarder
    from tarragon_hpc.checkpoint.courier import Courier
    from tarragon_hpc.datapath.refe import Refe
    from tarragon_hpc.datapath.stats import RefeStats
    from tarragon_hpc.ids import Incarnation

KEPT = 50_000
"""Expert calls, and frames, that are kept: the last ones."""


class Tracer:
    """Does nothing unless a trace is wanted."""

    def __init__(self, who: Incarnation) -> None:
        self._who = who
        self._file = trace_file(who)
        self._experts: TracedForwarder | None = None
        self._courier: Courier | None = None

    def experts(self, refe: Refe) -> Forwarder:
        """What the engine is to use as its forwarder."""
        if self._file is None:
            return refe
        self._experts = TracedForwarder(refe, refe.stats)
        return self._experts

    def stores(self, courier: Courier) -> None:
        """Note what goes to the stores, too."""
        if self._file is not None:
            courier.traffic.record(KEPT)
            self._courier = courier

    def write(self) -> None:
        """At the end of a run."""
        if self._file is None or self._experts is None:
            return
        sent = self._courier.traffic.recorded() if self._courier is not None else ()
        frames = [Frame(*frame) for frame in sent]
        write_trace(self._file, Trace(str(self._who), list(self._experts.calls), frames))


class TracedForwarder:
    """A forwarder that notes its calls. stats: where the other one counts its bytes."""

    def __init__(self, inner: Forwarder, stats: RefeStats) -> None:
        self.calls: deque[ExpertCall] = deque(maxlen=KEPT)
        self._inner = inner
        self._stats = stats
        self._began = self._posted = 0.0
        self._had = (0, 0)

    def dispatch(self, layer: int, rows: int, hidden: int, topk_ids: int) -> Any:
        """As of the other one."""
        self._began, self._had = time.monotonic(), self._bytes()
        ticket = self._inner.dispatch(layer, rows, hidden, topk_ids)
        self._posted = time.monotonic()
        return ticket

    def combine(self, ticket: Any, weights: int, out: int) -> None:
        """As of the other one."""
        try:
            self._inner.combine(ticket, weights, out)
        finally:
            now, had, has = time.monotonic(), self._had, self._bytes()
            nbytes = has[0] - had[0], has[1] - had[1]
            self.calls.append(ExpertCall(self._began, self._posted, now, *nbytes))

    def take_masked(self) -> NDArray[np.int64] | None:
        """As of the other one."""
        return self._inner.take_masked()

    def _bytes(self) -> tuple[int, int]:
        return self._stats.request_bytes, self._stats.reply_bytes
