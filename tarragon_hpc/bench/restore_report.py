"""From what `bench restore` measured to its numbers and its table. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tarragon_hpc.observe.units import size

if TYPE_CHECKING:
    from collections.abc import Sequence

STRATEGIES = ("ours", "parallel", "sequential")
METRICS = ("seconds", "nbytes", "cpu_s")


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that went on (or, of `sequential`, ran).

    seconds, nbytes, cpu_s: see bench/restore.py. computed, restored: its tokens, by where their KV
    came from. expert_bytes: between AW and EWs for that, whatever the strategy. gap_s: what its
    client waited, the time until the death was noticed included. reason: why nothing was restored.
    """

    strategy: str
    point: int
    seconds: float
    nbytes: float
    cpu_s: float
    computed: int
    restored: int
    expert_bytes: float | None = None
    gap_s: float | None = None
    reason: str = ""


def summarize(samples: Sequence[Sample], points: Sequence[int]) -> dict[str, Any]:
    """Medians and spread by strategy and point, and how they compare (>1: ours is better).

    flat: ours, time at the last point over that at the first. bytes_ratio: ours over parallel
    replay, at the last point.
    """
    last = points[-1]
    medians: dict[str, dict[str, Any]] = {}
    for strategy in STRATEGIES:
        for point in points:
            found = [s for s in samples if (s.strategy, s.point) == (strategy, point)]
            medians[f"{strategy}_{point}"] = {
                metric: _spread([float(getattr(s, metric)) for s in found]) for metric in METRICS
            } | {"computed": statistics.median(s.computed for s in found)}

    def median(strategy: str, point: int, metric: str) -> float:
        value: float = medians[f"{strategy}_{point}"][metric]["median"]
        return value

    ours = median("ours", last, "seconds")
    summary: dict[str, Any] = {
        "flat": ours / median("ours", points[0], "seconds"),
        "bytes_ratio": median("ours", last, "nbytes") / median("parallel", last, "nbytes"),
        "ours_anew": sum(not s.restored for s in samples if s.strategy == "ours"),
        f"ours_ms_{last}": ours * 1e3,
    }
    for other in STRATEGIES[1:]:
        for point in points:
            ratio = median(other, point, "seconds") / median("ours", point, "seconds")
            summary[f"vs_{other}_{point}"] = ratio
        spent = median("ours", last, "cpu_s")
        ratio = median(other, last, "cpu_s") / spent if spent > 0 else float("inf")
        summary[f"cpu_vs_{other}_{last}"] = ratio
    return {"summary": summary, "medians": medians}


def as_table(result: dict[str, Any], points: Sequence[int]) -> Table:
    """Time, bytes and CPU by strategy and point, for people."""
    s, medians = result["summary"], result["medians"]
    table = Table(
        title="A request goes on after the death of its AW, by tokens generated before it",
        caption="median (min … max); sequential replay: the time that generating these tokens "
        "takes without a failure",
    )
    table.add_column("")
    for point in points:
        table.add_column(str(point), justify="right")
    for metric, title, show in (
        ("seconds", "time", _ms),
        ("nbytes", "bytes moved", size),
        ("cpu_s", "CPU time", _ms),
    ):
        for strategy in STRATEGIES:
            cells = []
            for point in points:
                value = medians[f"{strategy}_{point}"][metric]
                spread = f"({show(value['min'])} … {show(value['max'])})"
                cells.append(f"{show(value['median'])}\n{spread}")
            table.add_row(f"{title}, {strategy}", *cells)
        table.add_section()
    for other in STRATEGIES[1:]:
        cells = [f"{s[f'vs_{other}_{point}']:.1f}×" for point in points]
        table.add_row(f"time, {other} / ours", *cells)
    blank = [""] * (len(points) - 1)
    table.add_row("time, ours, last / first", *blank, f"{s['flat']:.2f}×")
    table.add_row("bytes, ours / parallel", *blank, f"{s['bytes_ratio']:.3f}×")
    table.add_row("of ours: computed anew after all", *blank, str(s["ours_anew"]))
    return table


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
