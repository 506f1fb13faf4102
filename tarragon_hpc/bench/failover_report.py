"""From what `bench failover` measured to its numbers and its table. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tarragon_hpc.bench import arrivals as ar
from tarragon_hpc.bench.failover_incidents import (
    add_rows,
    gaps_of_hit,
    incidents,
    summarize_incidents,
)
from tarragon_hpc.ids import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.bench.aftermath import Resumption
    from tarragon_hpc.bench.arrivals import Stream
    from tarragon_hpc.bench.injection import Injection
    from tarragon_hpc.bench.restart import Restart

_JOIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that was measured. `expected`: prompt → the tokens without failures; `role`: who
    was hit; `resumed`: requests that went on on another AW.
    """

    steady: list[Stream]
    disturbed: list[Stream]
    expected: dict[int, list[int]]
    injections: list[Injection]
    restart: Restart | None
    role: str = Role.EW
    resumed: list[Resumption] = field(default_factory=list)


def summarize(record: Record) -> dict[str, Any]:
    """The numbers, in milliseconds where the name says so; None where nothing was measured.

    gap_ms: of the streams of the AW that was hit; of other roles, of all streams.
    """
    steady = [gap for s in record.steady if (gap := ar.longest_gap(s, 0, float("inf")))]
    gaps, joins, dips = [], [], []
    usual = ar.rate(record.steady, *_span(record.steady))
    for injection in record.injections:
        gaps += ar.gaps_of_live(record.disturbed, injection.at, injection.over_at)
        ready = injection.story["seconds"].get("ready")
        restored = injection.story["seconds"].get("restored")
        if ready is not None and restored is not None:
            start = injection.at + ready
            joins += ar.gaps_of_live(record.disturbed, start, injection.at + restored + _JOIN_S)
        if usual:
            after = ar.rate(record.disturbed, injection.at, injection.at + 1.0)
            dips.append(1 - after / usual)
    if record.role == Role.AW:
        gaps = gaps_of_hit(record.disturbed, incidents(record.injections, record.resumed))
    capacity = [i.capacity_s for i in record.injections if i.capacity_s is not None]
    tally = ar.compare(record.disturbed, record.expected)
    before = ar.compare(record.steady, record.expected)
    waits = record.restart.gaps if record.restart else []
    gap_p50, restart_p50 = ar.percentile(gaps, 50), ar.percentile(waits, 50)
    summary = {
        "gap_ms_p50": _ms(gap_p50),
        "gap_ms_p99": _ms(ar.percentile(gaps, 99)),
        "gap_ms_max": _ms(max(gaps, default=None)),
        "restart_ratio": restart_p50 / gap_p50 if gap_p50 and restart_p50 else None,
        "capacity_s_p50": ar.percentile(capacity, 50),
        "failed": tally.failed + before.failed,
        "changed": tally.changed + before.changed,
        "faults": len(record.injections),
        "streams": tally.streams,
        "streams_hit": len(gaps),
        "steady_gap_ms_p50": _ms(ar.percentile(steady, 50)),
        "steady_gap_ms_p99": _ms(ar.percentile(steady, 99)),
        "steady_tokens_per_s": usual,
        "join_gap_ms_p99": _ms(ar.percentile(joins, 99)),
        "dip_p50": ar.percentile(dips, 50),
        "capacity_s_max": max(capacity, default=None),
        "restart_gap_ms_p50": _ms(restart_p50),
        "restart_gap_ms_max": _ms(max(waits, default=None)),
    }
    if record.role != Role.EW:
        summary |= summarize_incidents(
            record.steady, record.disturbed, record.injections, record.resumed
        )
    errors = sorted({s.error for s in [*record.steady, *record.disturbed] if s.error})
    faults = [asdict(injection) for injection in record.injections]
    resumed = [asdict(r) for r in record.resumed]
    return {
        "summary": summary, "faults": faults, "gaps_ms": list(map(_ms, gaps)), "resumed": resumed,
        "errors": errors,
    }  # fmt: skip


def as_table(result: dict[str, Any]) -> Table:
    """The summary for people."""
    s = result["summary"]
    table = Table(
        title=f"{s['faults']} faults under {s['streams']} streams",
        caption="longest gap: between two tokens of a stream that was live at a fault (of an AW: "
        "that it ran), until the service was whole again; restart: everything killed, started "
        "anew, requests redone",
    )
    table.add_column("")
    for column in ("p50", "p99", "max"):
        table.add_column(column, justify="right")
    gaps = ("gap_ms_p50", "gap_ms_p99", "gap_ms_max")
    table.add_row("longest gap at a fault, ms", *(_shown(s[key]) for key in gaps))
    usual = (s["steady_gap_ms_p50"], s["steady_gap_ms_p99"])
    table.add_row("longest gap without faults, ms", *map(_shown, usual), "")
    table.add_row("gap while a successor joins, ms", "", _shown(s["join_gap_ms_p99"]), "")
    capacity = (s["capacity_s_p50"], None, s["capacity_s_max"])
    table.add_row("capacity restored, s", _shown(capacity[0], 2), "", _shown(capacity[2], 2))
    dip = None if s["dip_p50"] is None else 100 * s["dip_p50"]
    table.add_row("tokens missing in the second after a fault, %", _shown(dip), "", "")
    restart = (s["restart_gap_ms_p50"], s["restart_gap_ms_max"])
    table.add_row("gap of a coarse restart, ms", _shown(restart[0], 0), "", _shown(restart[1], 0))
    ratio = s["restart_ratio"]
    table.add_row("restart / failover", "-" if ratio is None else f"{ratio:.0f}×", "", "")
    table.add_row("streams failed / changed", f"{s['failed']} / {s['changed']}", "", "")
    if "others" in s:
        add_rows(table, s)
    return table


def _span(streams: Sequence[Stream]) -> tuple[float, float]:
    """From when all first streams were under way until the first of the last ones ended."""
    times = sorted(at for s in streams for at in s.times)
    if len(times) < 2:
        return 0.0, 0.0
    cut = (times[-1] - times[0]) * 0.1
    return times[0] + cut, times[-1] - cut


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _shown(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
