"""Many simulated workers through one run directory: filesystem operations and time.

A few processes play many workers each, a thread per worker. Each does what a worker's process does
with the run directory, by the same functions: wait for the head, claim its incarnation, leave its
record. Some begin a second before the head has written where it listens.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.joining import claim, find_head, publish
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import WORKERS, create_run, read_head, write_head
from tarragon_hpc.cluster.roster import Roster, look
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import UserError
from tarragon_hpc.ids import Incarnation

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

PROCESSES = 4
EARLY_S = 1.0
_START_S = 120.0
_ADDRESS = {"kind": "tcp", "host": "192.0.2.1", "port": "40000"}  # of nobody (RFC 5737)


def run(*, workers: int = 1000, early: float = 0.1, directory: str | None = None) -> dict[str, Any]:
    """Measure, print a table, and return the numbers.

    early: the share of workers that begin before the head; directory: where the run directory is
    made and removed, such as on a shared filesystem; default: a temporary one.
    `summary`: `operations` (mean of a worker), `operations_early` (of those), `seconds` (from the
    head's record to the last worker's), `slowest_s` (of a worker that was not early). `kinds`: mean
    of a worker by kind of operation. `most`: of one worker. `head`: what it costs the head to read
    all records. `problem`: why the numbers are of no use. Raises UserError.
    """
    if directory is not None and not Path(directory).is_dir():
        raise UserError(f"--directory {directory}: no such directory")
    with tempfile.TemporaryDirectory(prefix="tarragon-bench-", dir=directory) as scratch:
        run_dir = create_run(load_config({"model": {"path": "none"}}), Path(scratch) / "run")
        seconds, told = _play(run_dir, workers, round(workers * early))
        head, problem = _read_all(run_dir, workers)
    late = [worker for worker in told if not worker["early"]]
    total: Counter[str] = Counter()
    for worker in told:
        total.update(worker["operations"])
    result = {
        "summary": {
            "workers": len(told),
            "operations": total.total() / len(told),
            "operations_early": _mean([w for w in told if w["early"]]),
            "seconds": seconds,
            "slowest_s": max((worker["seconds"] for worker in late), default=None),
        },
        "kinds": {kind: count / len(told) for kind, count in sorted(total.items())},
        "most": max(sum(worker["operations"].values()) for worker in told),
        "head": head,
        "problem": problem,
        "workers": told,
    }
    _print(result)
    return result


def _play(run_dir: Path, workers: int, early: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds, and what every worker tells."""
    spawn = multiprocessing.get_context("spawn")
    all_there = spawn.Barrier(PROCESSES + 2)
    with ProcessPoolExecutor(PROCESSES + 1, spawn, _meet, (all_there,)) as pool:
        for _ in range(PROCESSES + 1):
            pool.submit(int)  # starts a process as long as none is idle
        all_there.wait(_START_S)
        plays = [pool.submit(_process, str(run_dir), range(early), True)]
        time.sleep(EARLY_S)
        began = time.monotonic()
        write_head(run_dir, HeadRecord("bench", 1, "head", "192.0.2.1", 40000, "", "/nowhere"))
        shares = (range(early + number, workers, PROCESSES) for number in range(PROCESSES))
        plays += [pool.submit(_process, str(run_dir), share, False) for share in shares]
        told = [worker for play in plays for worker in play.result()]
        return time.monotonic() - began, told


def _meet(all_there: Barrier) -> None:
    all_there.wait(_START_S)


def _process(run_dir: str, numbers: range, early: bool) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(max(1, len(numbers))) as threads:
        return list(threads.map(lambda number: _worker(Path(run_dir), number, early), numbers))


def _worker(run_dir: Path, number: int, early: bool) -> dict[str, Any]:
    began = time.monotonic()
    run, who = Directory(run_dir), Incarnation(f"ew{number}", 1)
    found = find_head(run)
    claim(run, who)
    publish(run, who, found.nonce, _ADDRESS)
    took = time.monotonic() - began
    return {"worker": str(who), "early": early, "seconds": took, "operations": dict(run.count)}


def _read_all(run_dir: Path, workers: int) -> tuple[dict[str, int], str | None]:
    """The operations of a head that reads all records, and what is wrong with them."""
    head = read_head(run_dir)
    directory, roster = Directory(run_dir).under(WORKERS), Roster(head.nonce)
    look(directory, roster, [name for name in directory.fresh() if name.endswith(".json")])
    if len(roster.records) == workers and not roster.ignored:
        return dict(directory.count), None
    ignored = dict(roster.ignored)
    return dict(directory.count), f"{len(roster.records)} good records, ignored: {ignored}"


def _mean(told: list[dict[str, Any]]) -> float | None:
    """Operations of one of these workers."""
    counts = [sum(worker["operations"].values()) for worker in told]
    return statistics.mean(counts) if counts else None


def _print(result: dict[str, Any]) -> None:
    summary = result["summary"]
    early = summary["operations_early"]
    table = Table(
        title=f"{summary['workers']} workers through one run directory",
        caption=f"operations on the filesystem per worker; most of one: {result['most']}"
        + (f"; mean of those before the head: {early:.1f}" if early else "")
        + f"\nall together {summary['seconds']:.1f} s",
    )
    kinds: dict[str, float] = result["kinds"]
    for name in (*kinds, "all"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{n:.2f}" for n in (*kinds.values(), summary["operations"])))
    Console().print(table)
