"""Round trips as other people's tools measure them: `ucx_perftest` and perftest's `ib_write_lat`.

Both print half of a round trip of one size; each runs its two ends itself, on the same CPUs as the
rest of the benchmark.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.transport.rdma_ports import Port

UCX = "ucx_perftest"
WRITE_LAT = "ib_write_lat"
_LONGEST_S = 60.0
_START_S = 5.0  # until the tool's server listens


def installed(tool: str) -> bool:
    """Whether the tool can be run here."""
    return shutil.which(tool) is not None


def ucx_round_trip(
    kind: str, nbytes: int, calls: int, cpus: tuple[int, int] | None, port: Port | None
) -> float | str:
    """Median round trip of an active message and one back in microseconds, or what went wrong."""
    environment = {
        "shm": {"UCX_TLS": "posix"},
        "tcp": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"},
        "rdma": {"UCX_TLS": "rc_verbs"},
    }[kind]
    if port is not None:
        environment["UCX_NET_DEVICES"] = f"{port.device}:{port.port}"
        environment["UCX_IB_GID_INDEX"] = "auto" if port.gid_index is None else str(port.gid_index)
    options = ["-t", "ucp_am_lat", "-s", str(nbytes), "-n", str(calls), "-w", str(calls // 5)]
    try:
        printed = _run(UCX, [*options, "-f", "-v"], cpus, environment)
        return 2 * parse_ucx(printed)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"{UCX}: {error}"


def write_latency(
    port: Port, nbytes: int, calls: int, cpus: tuple[int, int] | None
) -> dict[str, float]:
    """p50 and p99 of two one-sided writes, there and back, in microseconds.

    Raises UserError if the tool is missing or fails.
    """
    if not installed(WRITE_LAT):
        raise UserError(f"bench datapath --transport rdma needs {WRITE_LAT} (perftest)")
    options = ["-d", port.device, "-i", str(port.port), "-s", str(nbytes), "-n", str(calls), "-F"]
    if port.gid_index is not None:
        options += ["-x", str(port.gid_index)]
    try:
        p50, p99 = parse_write_lat(_run(WRITE_LAT, options, cpus, {}))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UserError(f"{WRITE_LAT}: {error}") from None
    return {"p50": 2 * p50, "p99": 2 * p99}


def parse_ucx(printed: str) -> float:
    """The median latency in its CSV (`-f -v`). Raises ValueError."""
    table = [line.strip().split(",") for line in printed.splitlines() if "," in line]
    if len(table) < 2 or "50.0_percentile_lat" not in table[0]:
        raise ValueError(f"printed no latency: {printed.strip()[-200:]!r}")
    return float(table[-1][table[0].index("50.0_percentile_lat")])


def parse_write_lat(printed: str) -> tuple[float, float]:
    """Typical latency and 99th percentile of its summary line. Raises ValueError.

    Columns: bytes, iterations, t_min, t_max, t_typical, t_avg, t_stdev, 99%, 99.9%.
    """
    for line in printed.splitlines():
        fields = line.split()
        if len(fields) == 9 and fields[0].isdecimal():
            return float(fields[4]), float(fields[7])
    raise ValueError(f"printed no latency: {printed.strip()[-200:]!r}")


def _run(
    tool: str, options: list[str], cpus: tuple[int, int] | None, environment: Mapping[str, str]
) -> str:
    """What the asking end printed. Raises OSError or SubprocessError."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = ["-p", str(sock.getsockname()[1])]
    # Without the options the server of ucx_perftest learns them from the client.
    server_options = port if tool == UCX else [*options, *port]
    server = subprocess.Popen(
        _on(cpus and cpus[1], tool, server_options),
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        began = time.monotonic()
        while True:
            client = subprocess.run(
                _on(cpus and cpus[0], tool, [*options, *port, "127.0.0.1"]),
                env=os.environ | environment,
                capture_output=True,
                text=True,
                timeout=_LONGEST_S,
                check=False,
            )
            if client.returncode == 0:
                return client.stdout
            if time.monotonic() - began > _START_S:
                said = (client.stderr or client.stdout).strip().rpartition("\n")[2]
                raise ValueError(f"ended with status {client.returncode}: {said[-200:]}")
            time.sleep(0.1)
    finally:
        server.kill()
        server.wait()


def _on(cpu: int | None, tool: str, options: list[str]) -> list[str]:
    pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
    return [*pinned, tool, *options]
