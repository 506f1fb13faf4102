"""What the loss of AWs and CSs did to streams, apart for those that it hit and the others. Pure.

Faults that overlap are one incident, from the first of them until the service was whole again.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from tarragon_hpc.bench import aftermath
from tarragon_hpc.bench import arrivals as ar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.table import Table

    from tarragon_hpc.bench.aftermath import Resumption
    from tarragon_hpc.bench.arrivals import Stream
    from tarragon_hpc.bench.injection import Injection

LIMIT_MS = 30.0
"""Streams on other AWs should not wait longer than this over their usual gap."""


class Incident(NamedTuple):
    """start, end: of the host's monotonic clock. resumed: the requests that went on meanwhile.
    also: a worker of another role was killed with them, so that it may have hit every stream.
    """

    start: float
    end: float
    resumed: list[Resumption]
    also: bool = False

    @property
    def moved(self) -> float:
        """When the last request that it hit had gone on."""
        return max((r.at for r in self.resumed), default=self.start)

    @property
    def hit(self) -> set[str]:
        """The ids of the streams that it hit."""
        return {r.id for r in self.resumed}


def incidents(injections: Iterable[Injection], resumed: Sequence[Resumption]) -> list[Incident]:
    """Faults, those together that ended together."""
    found = []
    for end, together in groupby(injections, key=lambda injection: injection.over_at):
        group = list(together)
        start = min(injection.at for injection in group)
        also = any(injection.also for injection in group)
        found.append(Incident(start, end, aftermath.within(resumed, start, end), also))
    return found


def gaps_of_hit(streams: Sequence[Stream], found: Iterable[Incident]) -> list[float]:
    """The longest gap of every stream that an incident hit between two of its tokens."""
    gaps = []
    for incident in found:
        hit = incident.hit
        for stream in streams:
            if stream.id in hit:
                gap = ar.longest_gap(stream, incident.start, incident.end)
                gaps += [] if gap is None else [gap]
    return gaps


def summarize_incidents(
    steady: Sequence[Stream],
    disturbed: Sequence[Stream],
    injections: Sequence[Injection],
    resumed: Sequence[Resumption],
) -> dict[str, Any]:
    """In milliseconds where the name says so.

    others_excess_ms: by how much the longest gap of streams on other AWs exceeded that of the same
    request without faults, until the service was whole; with `failover`: until the last request
    that was hit had gone on; both without incidents in which an EW was killed as well.
    steady_excess_ms: the same of the streams without faults, that is how much of it is chance.
    """
    found = incidents(injections, resumed)
    usual = aftermath.usual_gaps(steady)
    others: list[float] = []
    early: list[float] = []
    for incident in found:
        if incident.also:
            continue
        hit = incident.hit
        others += aftermath.excess(disturbed, usual, incident.start, incident.end, hit)
        early += aftermath.excess(disturbed, usual, incident.start, incident.moved, hit)
    chance = aftermath.steady_excess(steady, usual)
    protected = [i.protected_s for i in injections if i.protected_s is not None]
    moves = aftermath.describe([r for incident in found for r in incident.resumed])
    numbers: dict[str, Any] = {f"moves_{key}": value for key, value in moves.items()}
    for name, values in (("others", others), ("failover", early), ("steady", chance)):
        for q in (50, 99, 100):
            key = f"{name}_excess_ms_{'max' if q == 100 else f'p{q}'}"
            value = ar.percentile(values, q)
            numbers[key] = None if value is None else round(value * 1e3, 3)
    return numbers | {
        "others": len(others),
        "others_above_limit": sum(value * 1e3 > LIMIT_MS for value in others),
        "failover_above_limit": sum(value * 1e3 > LIMIT_MS for value in early),
        "protected_s_p50": ar.percentile(protected, 50),
        "protected_s_max": max(protected, default=None),
        "never_protected": sum(i.protected_s is None for i in injections),
    }


def add_rows(table: Table, s: dict[str, Any]) -> None:
    """The rows of the summary that are about this."""
    table.add_section()
    for title, name in (
        ("others' gaps over their usual ones, failover, ms", "failover"),
        ("the same, until the service was whole, ms", "others"),
        ("the same without faults (chance), ms", "steady"),
    ):
        cells = [_shown(s[f"{name}_excess_ms_{q}"], 1) for q in ("p50", "p99", "max")]
        table.add_row(title, *cells)
    table.add_row(
        f"others above {LIMIT_MS:.0f} ms, failover / until whole",
        f"{s['failover_above_limit']} / {s['others_above_limit']} of {s['others']}", "", "",
    )  # fmt: skip
    table.add_row(
        "requests that went on: restored / computed anew",
        f"{s['moves_restored']} / {s['moves_anew']}", "", "",
    )  # fmt: skip
    computed = [_shown(s[f"moves_computed_{q}"], 0) for q in ("p50", "p99", "max")]
    table.add_row("tokens computed of a restored one", *computed)
    table.add_row("restored with exactly 1 token computed", str(s["moves_exact"]), "", "")
    seconds = [s[f"moves_seconds_{q}"] for q in ("p50", "p99")]
    table.add_row("from the Submit to the next token, ms", *(_ms(v) for v in seconds), "")
    again = _shown(s["protected_s_p50"], 2), "", _shown(s["protected_s_max"], 2)
    table.add_row("everything in a store again, s", *again)


def _ms(seconds: float | None) -> str:
    return _shown(None if seconds is None else seconds * 1e3, 1)


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
