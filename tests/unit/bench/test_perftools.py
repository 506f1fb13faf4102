"""Other people's benchmarks: what they print is read, and their troubles are said."""

from __future__ import annotations

import os

import pytest

from tarragon_hpc.bench import perftools
from tarragon_hpc.errors import UserError
from tarragon_hpc.transport.rdma_ports import Port

UCX = """\
iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr
  50,58.750,6065.619,6065.619,330.05,330.05,165,165
"""
WRITE_LAT = """\
---------------------------------------------------------------------------------------
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]  \
  t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec]
 8192    100          9.03           45.50        10.25            11.08        2.10  \
  21.22                  45.50
---------------------------------------------------------------------------------------
"""
PORT = Port("rxe0", 1, "ACTIVE", "Ethernet", 2, "::ffff:10.0.0.1", 0, 1024, "eth0")


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Installs a tool whose client does as the script says and whose server waits."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def install(name, client):
        path = tmp_path / name
        path.write_text(
            f'#!/bin/sh\necho "$UCX_TLS $UCX_NET_DEVICES $@" >> {tmp_path}/calls\n'
            f'case "$*" in *127.0.0.1) {client};; *) exec sleep 60;; esac\n'
        )
        path.chmod(0o755)
        return tmp_path / "calls"

    return install


def printing(text):
    return f"cat <<'END'\n{text}END\n"


def test_what_is_printed_is_half_a_round_trip(tool):
    calls = tool(perftools.UCX, printing(UCX))
    tool(perftools.WRITE_LAT, printing(WRITE_LAT))
    assert perftools.ucx_round_trip("tcp", 8192, 50, None, None) == 117.5
    assert perftools.ucx_round_trip("rdma", 8192, 50, None, PORT) == 117.5
    assert perftools.write_latency(PORT, 8192, 100, None) == {"p50": 20.5, "p99": 42.44}
    clients = [line for line in calls.read_text().splitlines() if line.endswith("127.0.0.1")]
    assert clients[0].startswith("tcp lo -t ucp_am_lat -s 8192 -n 50")
    assert clients[1].startswith("rc_verbs rxe0:1 -t ucp_am_lat")
    assert "-d rxe0 -i 1 -s 8192 -n 100 -F -x 2" in clients[2]


def test_the_ends_are_pinned_where_the_benchmark_is(tool):
    cpus = sorted(os.sched_getaffinity(0))
    show = "grep -o 'Cpus_allowed_list.*' /proc/self/status >&2; false"
    tool(perftools.WRITE_LAT, show)
    with pytest.raises(UserError, match=rf"status 1: Cpus_allowed_list:\s*{cpus[-1]}"):
        perftools.write_latency(PORT, 8, 10, (cpus[-1], cpus[0]))


@pytest.mark.parametrize(
    ("client", "why"),
    [
        (printing("hello\n"), "printed no latency: 'hello'"),
        ("echo no such device >&2; exit 3", "status 3: no such device"),
        ("exec sleep 60", "timed out"),
    ],
)
def test_a_tool_that_fails_says_why(tool, monkeypatch, client, why):
    monkeypatch.setattr(perftools, "_START_S", 0.2)
    monkeypatch.setattr(perftools, "_LONGEST_S", 0.5)
    tool(perftools.UCX, client)
    tool(perftools.WRITE_LAT, client)
    assert why in perftools.ucx_round_trip("shm", 8, 10, None, None)
    with pytest.raises(UserError, match=f"ib_write_lat: .*{why}"):
        perftools.write_latency(PORT, 8, 10, None)


def test_a_tool_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not perftools.installed(perftools.UCX)
    with pytest.raises(UserError, match=r"needs ib_write_lat \(perftest\)"):
        perftools.write_latency(PORT, 8, 10, None)
