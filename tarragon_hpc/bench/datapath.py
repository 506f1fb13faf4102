"""A call of `expert_io` against an echo EW over shared memory, beside the floor of the machine.

The floor is a C++ ping-pong of the same bytes through shared memory: two processes, each copies in
and copies out, waiting as the doorbell does. Ours and the floor take turns round by round, between
the same two CPUs, so that what the machine does meanwhile meets both.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from tarragon_hpc import native
from tarragon_hpc.datapath.ert import ERT
from tarragon_hpc.datapath.refe import Refe
from tarragon_hpc.errors import UserError
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.memory import create_memory
from tarragon_hpc.transport.shm import ShmConnector
from tarragon_hpc.wire import dispatch as wire
from tarragon_hpc.wire.common import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = (1, 32, 256)
HIDDEN = 4096
EXPERTS = 8
ITEMSIZE = 2
CALLS_PER_ROUND = {1: 200, 32: 60, 256: 20}


class Peers(NamedTuple):
    """Both ends, ready to measure."""

    refe: Refe
    raw: memoryview
    cpus: tuple[int, int] | None


def run(*, rounds: int = 30, spin_us: int = 20) -> dict[str, Any]:
    """Measure, print a table, and return the numbers, in microseconds.

    rounds: how often ours and the floor take turns; spin_us: busy wait before sleeping, of all.
    `rows`: one record per number of rows; `summary`: `p50_ratio_N` (ours over the floor) and
    `p50_extra_us_N` (ours minus the floor) for N rows. Raises UserError without the native module.
    """
    if native.reason is not None:
        raise UserError(f"bench datapath measures native code: {native.reason}")
    with _peers(spin_us) as peers:
        records = [_measure(peers, rows, rounds, spin_us) for rows in ROWS]
        pinned = peers.cpus
    summary: dict[str, float] = {}
    for record in records:
        ours, raw, rows = record["ours_us"]["p50"], record["raw_us"]["p50"], record["rows"]
        summary[f"p50_ratio_{rows}"] = ours / raw
        summary[f"p50_extra_us_{rows}"] = ours - raw
    _print(records, pinned, spin_us)
    return {
        "summary": summary,
        "rows": records,
        "hidden": HIDDEN,
        "spin_us": spin_us,
        "cpus": pinned,
    }


def _measure(peers: Peers, rows: int, rounds: int, spin_us: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    hidden = rng.integers(0, 0x7F00, (rows, HIDDEN), dtype=np.uint16)
    ids = rng.integers(0, EXPERTS, (rows, 1), dtype=np.int32)
    weights = np.ones((rows, 1), np.float32)
    out = np.zeros_like(hidden)
    request = wire.request_bytes(rows, rows, len(np.unique(ids)), HIDDEN, ITEMSIZE)
    reply = wire.reply_bytes(rows, HIDDEN, ITEMSIZE)
    calls = CALLS_PER_ROUND[rows]
    ours: list[int] = []
    raw: list[int] = []
    for number in range(rounds + 1):
        times = native.module.pingpong_ask(peers.raw, request, reply, calls, spin_us)
        own = []
        for _ in range(calls):
            start = perf_counter_ns()
            peers.refe.expert_io(0, hidden, ids, weights, out)
            own.append(perf_counter_ns() - start)
        if number:  # the first round warms up
            raw += times
            ours += own
    if out.tobytes() != hidden.tobytes():
        raise RuntimeError("the echo is not what was sent")
    return {
        "rows": rows,
        "request_bytes": request,
        "reply_bytes": reply,
        "calls": len(ours),
        "ours_us": _percentiles(ours),
        "raw_us": _percentiles(raw),
    }


def _percentiles(nanoseconds: list[int]) -> dict[str, float]:
    p50, p99 = np.percentile(nanoseconds, [50, 99]) / 1e3
    return {"p50": float(p50), "p99": float(p99)}


@contextlib.contextmanager
def _peers(spin_us: int) -> Iterator[Peers]:
    """The echo EW in a process of its own, on a CPU of its own if there are two."""
    allowed = os.sched_getaffinity(0)
    first, *others = sorted(allowed)
    cpus = (first, others[0]) if others else None
    request, reply = wire.slot_geometry(max(ROWS), 1, EXPERTS, HIDDEN, ITEMSIZE)
    raw_bytes = native.module.pingpong_bytes(request, reply)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tarragon-bench-"))
        secret = secrets.token_bytes(32)
        raw_fd, raw = create_memory("tarragon-raw", raw_bytes)
        stack.callback(os.close, raw_fd)
        options = {
            "directory": directory,
            "secret": secret.hex(),
            "cpu": cpus[1] if cpus else None,
            "experts": EXPERTS,
            "hidden": HIDDEN,
            "spin_us": spin_us,
            "raw_fd": raw_fd,
            "raw_bytes": raw_bytes,
        }
        peer = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tarragon_hpc.bench.echo_peer", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[raw_fd],
            )
        )
        assert peer.stdout is not None
        line = peer.stdout.readline()
        if not line:
            raise RuntimeError(f"the echo EW ended with status {peer.wait()}")
        if cpus:
            os.sched_setaffinity(0, {cpus[0]})
            stack.callback(os.sched_setaffinity, 0, allowed)
        bell = ProcessDoorbell(spin_us)
        stack.callback(bell.close)
        refe = Refe(
            worker="aw0",
            incarnation=1,
            connector=ShmConnector("aw0", 1, secret, bell),
            bell=bell,
            experts=EXPERTS,
            top_k=1,
            hidden=HIDDEN,
            dtype="bfloat16",
            slot_rows=max(ROWS),
        )
        stack.callback(refe.close)
        down = refe.apply_table(
            ERT.of(1, [["ew0"]] * EXPERTS), {"ew0": Peer("ew0", 1, json.loads(line))}
        )
        if down:
            raise RuntimeError(f"the echo EW cannot be reached: {down}")
        yield Peers(refe, raw, cpus)


def _print(records: list[dict[str, Any]], cpus: tuple[int, int] | None, spin_us: int) -> None:
    where = f"CPUs {cpus[0]} and {cpus[1]}" if cpus else "one CPU for both"
    table = Table(
        title=f"expert_io over shm: {HIDDEN} x bfloat16, top-1, echo EW",
        caption=f"µs per round trip; floor: C++ ping-pong of the same bytes; {where}; "
        f"spin {spin_us} µs",
    )
    for name in ("rows", "KiB", "p50", "floor p50", "ratio", "extra", "p99", "floor p99"):
        table.add_column(name, justify="right")
    for r in records:
        ours, raw = r["ours_us"], r["raw_us"]
        table.add_row(
            str(r["rows"]),
            f"{(r['request_bytes'] + r['reply_bytes']) / 1024:.0f}",
            f"{ours['p50']:.1f}",
            f"{raw['p50']:.1f}",
            f"{ours['p50'] / raw['p50']:.2f}",
            f"{ours['p50'] - raw['p50']:.1f}",
            f"{ours['p99']:.1f}",
            f"{raw['p99']:.1f}",
        )
    Console().print(table)
