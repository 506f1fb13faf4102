"""A picture of `bench failover`, like the paper's Fig. 9: time between tokens and throughput."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tarragon_hpc.bench import arrivals as ar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tarragon_hpc.bench.arrivals import Stream
    from tarragon_hpc.bench.failover_report import Record

_BIN_S = 0.1
_SHORTEST_MS = 0.5
_TITLES = ("without faults", "faults (dashed)", "coarse restart (dashed)")


def draw(record: Record, path: Path) -> None:
    """Write the picture; its format is that of the file's name. Raises UserError."""
    from matplotlib.figure import Figure

    panels: list[tuple[str, Sequence[Stream], list[float]]] = [(_TITLES[0], record.steady, [])]
    if record.injections:
        panels.append((_TITLES[1], record.disturbed, [i.at for i in record.injections]))
    if record.restart is not None:
        restart = record.restart
        panels.append((_TITLES[2], [*restart.before, *restart.after], [restart.killed]))
    figure = Figure(figsize=(5 * len(panels), 6), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex="col")
    for column, (title, streams, faults) in enumerate(panels):
        _panel(axes[0][column], axes[1][column], title, streams, faults)
    axes[0][0].set_ylabel("time between tokens, ms")
    axes[1][0].set_ylabel("output tokens/s")
    figure.savefig(path, dpi=120)


def _panel(
    above: Any, below: Any, title: str, streams: Sequence[Stream], faults: list[float]
) -> None:
    times = [at for stream in streams for at in stream.times]
    above.set_title(title)
    below.set_xlabel("seconds")
    if not times:
        return
    start, end = min(times), max(times)
    gaps = ar.gaps_over_time(streams)
    above.plot([at - start for at, _ in gaps], [gap * 1e3 for _, gap in gaps], ".", markersize=2)
    above.set_yscale("log")
    above.set_ylim(bottom=_SHORTEST_MS)
    rates = ar.throughput(streams, start, end, _BIN_S)
    below.plot([at - start for at, _ in rates], [value for _, value in rates])
    below.set_ylim(bottom=0)
    for at in faults:
        for axis in (above, below):
            axis.axvline(at - start, linestyle="--", linewidth=0.8, color="tab:red")
