"""A call of `expert_io` against an echo EW over one transport, beside the floor of its medium.

Ours and the floor (raw_medium.py) take turns round by round, between the same two CPUs, so that
what the machine does meanwhile meets both.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tarragon_hpc import native
from tarragon_hpc.bench import perftools
from tarragon_hpc.bench.datapath_ends import EXPERTS, HIDDEN, ITEMSIZE, ROWS, Ends, both_ends
from tarragon_hpc.bench.raw_medium import percentiles
from tarragon_hpc.config.schema import RdmaConfig, TransportConfig
from tarragon_hpc.errors import UserError
from tarragon_hpc.transport.rdma_ports import choose_port, find_ports
from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from tarragon_hpc.transport.rdma_ports import Port

KINDS = ("shm", "tcp", "rdma")
CALLS_PER_ROUND = {1: 200, 32: 60, 256: 20}


def run(*, transport: str = "shm", rounds: int = 30, spin_us: int = 20) -> dict[str, Any]:
    """Measure, print a table, and return the numbers, in microseconds.

    rounds: how often ours and the floor take turns; spin_us: busy wait before sleeping, of all.
    `rows`: one record per number of rows; `summary`: `p50_ratio_N` (ours over the floor) and
    `p50_extra_us_N` (ours minus the floor) for N rows; `ucx`: why its figures are missing, or None.
    Raises UserError without the native module, or where there is no such transport.
    """
    if transport not in KINDS:
        raise UserError(f"--transport {transport}: expected one of {', '.join(KINDS)}")
    if native.reason is not None:
        raise UserError(f"bench datapath measures native code: {native.reason}")
    port = _port() if transport == "rdma" else None
    config = TransportConfig.model_validate({"kind": transport, "spin_us": spin_us})
    with both_ends(config, port) as ends:
        records = [_measure(ends, rows, rounds) for rows in ROWS]
        floor, cpus = ends.floor.said, ends.cpus
    ucx = _add_ucx(records, transport, cpus, port)
    summary: dict[str, float] = {}
    for record in records:
        ours, raw, rows = record["ours_us"]["p50"], record["raw_us"]["p50"], record["rows"]
        summary[f"p50_ratio_{rows}"] = ours / raw
        summary[f"p50_extra_us_{rows}"] = ours - raw
    where = f"CPUs {cpus[0]} and {cpus[1]}" if cpus else "one CPU for both"
    notes = [f"floor: {floor}", where, f"spin {spin_us} µs"]
    if ucx is not None:
        notes.append(ucx)
    _print(records, transport, notes)
    return {
        "summary": summary,
        "transport": transport,
        "floor": floor,
        "rows": records,
        "hidden": HIDDEN,
        "spin_us": spin_us,
        "cpus": cpus,
        "ucx": ucx,
    }


def _port() -> Port:
    """The RDMA port that a worker of this node would take; else what `doctor` says."""
    port = choose_port(find_ports(), RdmaConfig())
    if isinstance(port, str):
        raise UserError(f"--transport rdma: {port}")
    return port


def _measure(ends: Ends, rows: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    hidden = rng.integers(0, 0x7F00, (rows, HIDDEN), dtype=np.uint16)
    ids = rng.integers(0, EXPERTS, (rows, 1), dtype=np.int32)
    weights = np.ones((rows, 1), np.float32)
    out = np.zeros_like(hidden)
    request = wire.request_bytes(rows, rows, len(np.unique(ids)), HIDDEN, ITEMSIZE)
    reply = wire.reply_bytes(rows, HIDDEN, ITEMSIZE)
    calls = CALLS_PER_ROUND[rows]

    def turn() -> list[int]:
        times = []
        for _ in range(calls):
            start = perf_counter_ns()
            ends.refe.expert_io(0, hidden, ids, weights, out)
            times.append(perf_counter_ns() - start)
        return times

    ends.floor.begin(request, reply, calls)
    turn()  # warms up
    ours: list[int] = []
    for _ in range(rounds):
        ends.floor.turn()
        ours += turn()
    if out.tobytes() != hidden.tobytes():
        raise RuntimeError("the echo is not what was sent")
    return {
        "rows": rows,
        "request_bytes": request,
        "reply_bytes": reply,
        "calls": len(ours),
        "ours_us": percentiles(ours),
        "raw_us": ends.floor.percentiles(),
    }


def _add_ucx(
    records: list[dict[str, Any]], transport: str, cpus: tuple[int, int] | None, port: Port | None
) -> str | None:
    """Add `ucx_us`, the median round trip, to the records; returns why it is missing."""
    if not perftools.installed(perftools.UCX):
        return f"{perftools.UCX} is not installed"
    for record in records:
        size = (record["request_bytes"] + record["reply_bytes"]) // 2
        calls = 5 * CALLS_PER_ROUND[record["rows"]]
        found = perftools.ucx_round_trip(transport, size, calls, cpus, port)
        if isinstance(found, str):
            return found
        record["ucx_us"] = {"p50": found}
    return None


def _print(records: list[dict[str, Any]], transport: str, notes: list[str]) -> None:
    table = Table(
        title=f"expert_io over {transport}: {HIDDEN} x bfloat16, top-1, echo EW",
        caption=f"µs per round trip of the same bytes; {'; '.join(notes)}",
    )
    with_ucx = all("ucx_us" in r for r in records)
    columns = ["rows", "KiB", "p50", "floor p50", "ratio", "extra", "p99", "floor p99"]
    for name in [*columns, "ucx p50"] if with_ucx else columns:
        table.add_column(name, justify="right")
    for r in records:
        ours, raw = r["ours_us"], r["raw_us"]
        cells = [
            str(r["rows"]),
            f"{(r['request_bytes'] + r['reply_bytes']) / 1024:.0f}",
            _us(ours["p50"]),
            _us(raw["p50"]),
            f"{ours['p50'] / raw['p50']:.2f}",
            _us(ours["p50"] - raw["p50"]),
            _us(ours["p99"]),
            _us(raw["p99"]),
        ]
        table.add_row(*cells, *([_us(r["ucx_us"]["p50"])] if with_ucx else []))
    Console().print(table)


def _us(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
