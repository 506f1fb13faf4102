"""When an AW's rows go to the EWs, and when its KV goes to the stores (paper §6.1, Fig. 8).

From a trace (observe/trace.py); all but `draw` is pure.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

from tarragon_hpc.wire.kv import PUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tarragon_hpc.observe.trace import ExpertCall, Frame, Trace

STEPS = 3
"""Engine steps in a picture."""


class Pattern(NamedTuple):
    """checkpoint_bytes were posted, `idle_bytes` of them while no dispatch was in flight, which was
    so for `idle_time` of the time (a share): were it all the same when they are posted, the share
    of the bytes would be that of the time.
    """

    frames: int
    checkpoint_bytes: int
    idle_bytes: int
    expert_bytes: int
    idle_time: float

    @property
    def idle_share(self) -> float | None:
        """Of the checkpoint bytes; None of nothing."""
        return self.idle_bytes / self.checkpoint_bytes if self.checkpoint_bytes else None


def measure(traces: Iterable[Trace]) -> Pattern:
    """Of several AWs together. In flight: from the beginning of a dispatch until its outputs have
    been added up. Frames count that fall between an AW's first call and its last.
    """
    frames = total = idle = experts = 0
    in_flight = span = 0.0
    for trace in traces:
        if not trace.calls:
            continue
        first, last = trace.calls[0].began, trace.calls[-1].ended
        span += last - first
        in_flight += sum(call.ended - call.began for call in trace.calls)
        experts += sum(call.request_bytes + call.reply_bytes for call in trace.calls)
        begins = [call.began for call in trace.calls]
        for frame in puts(trace.frames, first, last):
            frames += 1
            total += frame.nbytes
            # The first call began before the frame was posted, so there is one at index - 1.
            call = trace.calls[bisect_right(begins, frame.time) - 1]
            idle += frame.nbytes if frame.time >= call.ended else 0
    return Pattern(frames, total, idle, experts, 1 - in_flight / span if span else 0.0)


def puts(frames: Iterable[Frame], start: float, end: float) -> list[Frame]:
    """The frames with rows that were posted between two moments."""
    return [f for f in frames if f.kind == PUT and start <= f.time <= end]


def some_steps(calls: Sequence[ExpertCall], layers: int, steps: int = STEPS) -> list[ExpertCall]:
    """The calls of so many whole steps in the middle of a trace: `layers` calls are a step. As many
    as there are if there are fewer.
    """
    whole = len(calls) // layers
    first = max(0, (whole - steps) // 2)
    return list(calls[first * layers : (first + min(steps, whole)) * layers])


def draw(trace: Trace, layers: int, path: Path) -> None:
    """Bytes over time in some steps; the format of the picture is that of the file's name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.set_title(f"{trace.worker}: {STEPS} steps of {layers} MoE layers")
    calls = some_steps(trace.calls, layers)
    if calls:
        start = calls[0].began
        _stems(above, [(c.began - start, c.request_bytes) for c in calls], "to EWs", "tab:blue")
        _stems(above, [(c.ended - start, c.reply_bytes) for c in calls], "from EWs", "tab:cyan")
        frames = puts(trace.frames, start, calls[-1].ended)
        _stems(below, [(f.time - start, f.nbytes) for f in frames], "to stores", "tab:orange")
        for axis in (above, below):
            for number, call in enumerate(calls):
                label = "" if number else "dispatch in flight"
                began, ended = call.began - start, call.ended - start
                axis.axvspan(began * 1e3, ended * 1e3, color="0.9", label=label, zorder=0)
            axis.legend(loc="upper right")
    below.set_xlabel("ms")
    for axis in (above, below):
        axis.set_ylabel("KiB")
        axis.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def _stems(axis: Any, points: Sequence[tuple[float, int]], label: str, color: str) -> None:
    times = [at * 1e3 for at, _ in points]
    sizes = [nbytes / 1024 for _, nbytes in points]
    axis.vlines(times, 0, sizes, color=color, linewidth=1.5, label=label)
