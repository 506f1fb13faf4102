"""A picture of `bench restore`, like the paper's Fig. 12: time, bytes, CPU by failure point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tarragon_hpc.bench.restore_report import METRICS, STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LABELS = {
    "seconds": ("time to the next token, ms", 1e3),
    "nbytes": ("moved, KiB", 1 / 1024),
    "cpu_s": ("CPU time, ms", 1e3),
}
_MARKERS = {"ours": "o", "parallel": "s", "sequential": "^"}


def draw(result: dict[str, Any], points: Sequence[int], path: Path) -> None:
    """Write the picture; its format is that of the file's name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        label, unit = _LABELS[metric]
        for strategy in STRATEGIES:
            found = [result["medians"][f"{strategy}_{point}"][metric] for point in points]
            middle = [value["median"] * unit for value in found]
            # CPU time that was too little to be measured may come out below zero.
            low = [max(0.0, value["median"] - value["min"]) * unit for value in found]
            high = [max(0.0, value["max"] - value["median"]) * unit for value in found]
            axis.errorbar(
                points,
                middle,
                yerr=[low, high],
                marker=_MARKERS[strategy],
                label=strategy,
                capsize=3,
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(list(points), [str(point) for point in points])
        axis.set_xlabel("tokens generated before the failure")
        axis.set_ylabel(label)
        axis.grid(visible=True, alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
