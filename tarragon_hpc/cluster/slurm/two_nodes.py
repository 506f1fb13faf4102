"""What `tarragon doctor --slurm --nodes 2` runs on two nodes: the run directory between them.

    python -m tarragon_hpc.cluster.slurm.two_nodes DIRECTORY      one process per node

They meet by TCP (the first says in DIRECTORY where it listens) and use it to agree on what is next,
so that a file's way is measured by one clock: the first writes and notes the time until the second
says that it saw the file, less half a round trip. Then the other way. Every process leaves
facts.<number>.json, the first one also result.json. They import nothing heavy.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster import node
from tarragon_hpc.cluster.directory import Directory

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROUNDS = 20
_CLAIMS = 200
_REPLACED = 300
_MEET_S = 60.0
_CONNECT_S = 5.0
_ANSWER_S = 60.0
_POLL_S = 0.001


class Line:
    """Lines of JSON to and from the other process. Raises OSError if it is gone."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_ANSWER_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._lines = connection.makefile("rb")

    def tell(self, what: Any) -> None:
        """Say something."""
        self._connection.sendall(json.dumps(what).encode() + b"\n")

    def hear(self) -> Any:
        """What the other one says next."""
        line = self._lines.readline()
        if not line:
            raise ConnectionError("the process on the other node is gone")
        return json.loads(line)


def facts(directory: Path, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What this node is like."""
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return {
        "node": environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "host": socket.gethostname(),
        "free_bytes": shutil.disk_usage(directory).free,
        "gpus": gpus(environ),
        "interfaces": node.interfaces(),
        "memlock_bytes": None if locked == resource.RLIM_INFINITY else locked,
        "cpus": len(os.sched_getaffinity(0)),
    }


def gpus(environ: Mapping[str, str]) -> list[str]:
    """Those that this step may use, as Slurm numbers them; else the devices that there are."""
    for name in ("SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES"):
        if value := environ.get(name):
            return value.split(",")
    return sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))


def main(arguments: list[str]) -> int:
    """One of the two processes; returns the exit status."""
    path, number = Path(arguments[0]), int(os.environ["SLURM_PROCID"])
    here = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    try:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not there: run.root is not on a shared filesystem")
        directory = Directory(path)
        directory.write(f"facts.{number}.json", json.dumps(facts(path)).encode())
        if number == 0:
            result = _first(directory, _listen(directory))
            directory.write("result.json", json.dumps(result).encode())
        else:
            _second(directory, _connect(directory))
    except OSError as error:
        sys.stderr.write(f"{here}: {error}\n")
        return 1
    return 0


def _listen(directory: Directory) -> Line:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=1) as door:
        where = {"port": door.getsockname()[1], "addresses": list(node.interfaces().values())}
        directory.write("listener.json", json.dumps(where).encode())
        door.settimeout(_MEET_S)
        try:
            connection, _ = door.accept()
        except TimeoutError:
            raise ConnectionError(f"no process came from the other node in {_MEET_S:g} s") from None
        return Line(connection)


def _connect(directory: Directory) -> Line:
    _await(directory, "listener.json")
    where = json.loads(directory.read("listener.json", 1 << 16))
    tried = []
    for address in sorted(where["addresses"], key=lambda a: a.startswith("127.")):
        try:
            return Line(socket.create_connection((address, where["port"]), timeout=_CONNECT_S))
        except OSError as error:
            tried.append(f"{address}: {error}")
    raise ConnectionError(f"no TCP connection to the other node: {'; '.join(tried)}")


def _first(directory: Directory, line: Line) -> dict[str, Any]:
    trip = _round_trip(line)
    there = _show(directory, line, "there", trip)
    line.tell(trip)
    _watch(directory, line, "back")
    back = line.hear()
    mine, theirs = set(_claim(directory)), set(line.hear())
    return {
        "round_trip_s": trip,
        "there_s": _told(there),
        "back_s": _told(back),
        "claims": _CLAIMS,
        "claimed_by_both": len(mine & theirs),
        "claimed_by_none": _CLAIMS - len(mine | theirs),
        "replaced": _REPLACED,
        **_replace(directory, line),
    }


def _second(directory: Directory, line: Line) -> None:
    for _ in range(_ROUNDS):
        line.tell(line.hear())
    _watch(directory, line, "there")
    line.tell(_show(directory, line, "back", line.hear()))
    line.tell(_claim(directory))
    _read(directory, line)


def _round_trip(line: Line) -> float:
    took = []
    for number in range(_ROUNDS):
        begin = time.perf_counter()
        line.tell(number)
        line.hear()
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def _show(directory: Directory, line: Line, name: str, trip: float) -> list[float]:
    """Write files; how long it took until the other one saw each."""
    took = []
    for number in range(_ROUNDS):
        begin = time.perf_counter()
        directory.write(f"{name}.{number}", b"x" * 512)
        line.hear()
        took.append(max(0.0, time.perf_counter() - begin - trip / 2))
    return took


def _watch(directory: Directory, line: Line, name: str) -> None:
    """See the files of `_show`, by listing the directory as workers do, and say so."""
    for number in range(_ROUNDS):
        _await(directory, f"{name}.{number}")
        line.tell(number)


def _await(directory: Directory, name: str) -> None:
    deadline = time.monotonic() + _MEET_S
    while name not in directory.names():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} was not seen within {_MEET_S:g} s")
        time.sleep(_POLL_S)


def _claim(directory: Directory) -> list[int]:
    return [number for number in range(_CLAIMS) if directory.claim(f"claim.{number}", "x")]


def _replace(directory: Directory, line: Line) -> dict[str, int]:
    """Replace a file again and again while the other one reads it; what that one saw."""
    directory.write("replaced", b"0" * 4096)
    line.tell("read")
    line.hear()
    for number in range(1, _REPLACED):
        directory.write("replaced", str(number % 10).encode() * 4096, durable=False)
    directory.write("replaced.over", b"")
    found: dict[str, int] = line.hear()
    return found


def _read(directory: Directory, line: Line) -> None:
    line.hear()
    _await(directory, "replaced")
    line.tell("reading")
    torn = missing = reads = 0
    while "replaced.over" not in directory.names():
        for _ in range(10):
            reads += 1
            try:
                data = directory.read("replaced", 1 << 16)
            except FileNotFoundError:
                missing += 1
                continue
            except OSError:  # a stale handle of NFS: the file was replaced while it was open
                continue
            torn += len(data) != 4096 or len(set(data)) != 1
    line.tell({"reads": reads, "torn": torn, "missing": missing})


def _told(took: list[float]) -> dict[str, float]:
    return {"median": statistics.median(took), "max": max(took)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
