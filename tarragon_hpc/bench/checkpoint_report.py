"""From what `bench checkpoint` measured to its numbers and its table. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tarragon_hpc.bench.stall import PHASES
from tarragon_hpc.observe.units import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tarragon_hpc.bench.pattern import Pattern
    from tarragon_hpc.bench.stall import Stall

TITLES = {
    "none": "no checkpoints",
    "ours": "ours: every token, while no dispatch is in flight",
    "pause": "pause, copy everything, resume",
    "unsummed": "ours without checksums",
}


def summarize(
    speeds: Mapping[str, Sequence[float]],
    kept: Mapping[str, float],
    traffic: Pattern,
    stalled: Stall | None,
) -> dict[str, Any]:
    """Medians of the ratios of the rounds, with their spread; tokens per second.

    speeds: system → tokens per second, by round.
    """
    summary: dict[str, Any] = {}
    ratios: dict[str, list[float]] = {}
    for name, other in (*((n, "none") for n in ("ours", "pause")), ("ours", "unsummed")):
        if name in speeds and other in speeds:
            found = [a / b for a, b in zip(speeds[name], speeds[other], strict=True)]
            key = f"{name}_vs_{other}"
            ratios[key] = found
            summary[key] = statistics.median(found)
            summary[f"{key}_min"], summary[f"{key}_max"] = min(found), max(found)
    summary |= {
        "idle_share": traffic.idle_share,
        "idle_time": traffic.idle_time,
        "checkpoint_bytes_vs_expert_bytes": (
            traffic.checkpoint_bytes / traffic.expert_bytes if traffic.expert_bytes else None
        ),
    }
    if stalled is not None:
        before, during = stalled.rss["before"], stalled.rss["during"]
        grown = None if before is None or during is None else (during - before) / 2**20
        summary |= {
            "stall_extra_ms": stalled.extra_ms,
            "stall_rss_growth_mib": grown,
            "stall_protected_s": stalled.protected_s,
            "stall_failed": stalled.failed,
        }
    return {
        "summary": summary,
        "tokens_per_s": {
            name: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
            for name, values in speeds.items()
        },
        "ratios": ratios,
        "stores": dict(kept),
        "traffic": traffic._asdict(),
    }


def as_table(result: dict[str, Any]) -> Table:
    """The summary for people."""
    s = result["summary"]
    table = Table(title="Keeping all KV in checkpoint stores: tokens/s")
    for column in ("", "median", "min … max"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in result["tokens_per_s"].items():
        table.add_row(
            TITLES[name], f"{value['median']:.0f}", f"{value['min']:.0f} … {value['max']:.0f}"
        )
    table.add_section()
    for key in result["ratios"]:
        name, _, other = key.partition("_vs_")
        spread = f"{s[f'{key}_min']:.3f} … {s[f'{key}_max']:.3f}"
        table.add_row(f"{name} / {other}, by round", f"{s[key]:.3f}×", spread)
    table.add_section()
    share = "-" if s["idle_share"] is None else f"{100 * s['idle_share']:.1f} %"
    table.add_row("bytes to stores posted with no dispatch in flight", share, "")
    table.add_row("time with no dispatch in flight", f"{100 * s['idle_time']:.1f} %", "")
    if "stall" in result:
        _add_stall(table, result["stall"])
    return table


def _add_stall(table: Table, stall: dict[str, Any]) -> None:
    table.add_section()
    table.add_row(f"a store is stopped for {stall['seconds']:.0f} s under load", "", "")
    for phase in PHASES:
        gap, rss = stall["gap_s"][phase], stall["rss"][phase]
        gap_p99 = stall["gap_s_p99"][phase]
        told = "-" if gap is None else f"{gap * 1e3:.1f} ms (p99 {gap_p99 * 1e3:.1f})"
        table.add_row(f"longest gap {phase}", told, "")
        table.add_row(f"memory of an AW {phase}", "-" if rss is None else size(rss), "")
    seconds = stall["protected_s"]
    again = "never" if seconds is None else f"{seconds:.2f} s"
    table.add_row("after it, until a store had everything", again, "")
    table.add_row("streams failed", f"{stall['failed']} of {stall['streams']}", "")
