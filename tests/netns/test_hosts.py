"""The hosts themselves, and control connections between them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.wire.codec import head_decoder
from tarragon_hpc.wire.link import EXIT_HEAD_LOST
from tarragon_hpc.wire.stream import accept

if TYPE_CHECKING:
    from tarragon_hpc.bench.hosts import Hosts

HOSTS = ("cut", "both", "in", "out", "well")
LEASE_S = 1.0
SECRET = bytes(32)

LEFTOVER = """
import os, sys
from tarragon_hpc.bench.hosts import Hosts
hosts = Hosts(["a"])
print(*hosts.prefix("a"), flush=True)
os._exit(1)
"""

WORKER = """
import sys, threading
from pathlib import Path
from tarragon_hpc.config import load_config
from tarragon_hpc.wire.link import WorkerContext, WorkerLink
detection = {"heartbeat_ms": 50, "heartbeat_misses": 4, "stopped_grace_s": float(sys.argv[4]) - 0.2}
config = load_config({"model": {"path": "m"}, "detection": detection})
where = sys.argv[2], int(sys.argv[3])
context = WorkerContext(sys.argv[1], 1, config, Path("."), bytes(32), where, Path("."), None)
WorkerLink(context, {}, print, dict).start()
threading.Event().wait(60)
"""


def test_what_a_dead_process_left_is_removed_with_what_runs_there(make_hosts):
    done = subprocess.run([sys.executable, "-c", LEFTOVER], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    prefix = done.stdout.split()
    with subprocess.Popen([*prefix, "sleep", "60"]) as sleeper:
        make_hosts().close()
        assert sleeper.wait(10) == -9
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert prefix[-1] not in listed.stdout
    assert not Path(f"/sys/class/net/tg{prefix[-1].split('-')[2]}").exists()


def test_loss_loses_about_so_many_packets_and_heals(make_hosts):
    send = "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); "
    send += "import time; s.sendto(b'x', (sys.argv[1], 9)); time.sleep(0.4); "
    send += "[s.sendto(b'x', (sys.argv[1], 9)) for _ in range(199)]"
    count = "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 9)); "
    count += "s.settimeout(1.0); n = 0\nprint('up', flush=True)\n"
    count += "try:\n while s.recv(9): n += 1\nexcept TimeoutError: print(n)"
    hosts = make_hosts("a", "b")

    def received() -> int:
        command = [*hosts.prefix("b"), sys.executable, "-c", count]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout.readline() == "up\n"
            sender = [*hosts.prefix("a"), sys.executable, "-c", send, hosts.address("b")]
            subprocess.run(sender, check=True)
            return int(receiver.stdout.read())

    try:
        assert received() == 200  # they know each other's hardware address now
        hosts.lossy("a", 30)
        assert 90 <= received() <= 185
        hosts.heal("a")
        assert received() == 200
    finally:
        hosts.close()


@pytest.fixture
def links(make_hosts):
    """Workers' control links, one per host: (hosts, the head's port and connections by worker)."""
    hosts = make_hosts(*HOSTS)
    yield hosts
    hosts.close()


def test_a_worker_whose_head_is_silent_leaves_whichever_way_is_lost(links: Hosts):
    async def scenario() -> tuple[dict[str, int], dict[str, float]]:
        heard: dict[str, float] = {}

        async def serve(reader, writer) -> None:
            connection = await accept(reader, writer, SECRET, head_decoder())
            try:
                async for message in connection.messages():
                    heard[message.worker] = time.monotonic()
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(serve, links.head, 0)
        port = server.sockets[0].getsockname()[1]
        workers = {}
        for number, host in enumerate(HOSTS):
            command = [*links.prefix(host), sys.executable, "-c", WORKER]
            command += [f"ew{number}", links.head, str(port), str(LEASE_S)]
            workers[host] = await asyncio.create_subprocess_exec(
                *command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}
            )
        async with asyncio.timeout(30):
            while len(heard) < len(HOSTS):
                await asyncio.sleep(0.02)
        struck = time.monotonic()
        links.cut("cut")
        for way in ("both", "in", "out"):
            links.silence(way, way)
        took, ends = {}, {}
        for host in HOSTS[:-1]:
            ends[host] = await asyncio.wait_for(workers[host].wait(), 15)
            took[host] = time.monotonic() - struck
            assert b"has been silent for" in await workers[host].stderr.read()
        assert time.monotonic() - heard["ew4"] < 0.5
        workers["well"].kill()
        await workers["well"].communicate()
        server.close()
        return ends, took

    ends, took = asyncio.run(scenario())
    assert set(ends.values()) == {EXIT_HEAD_LOST}
    assert min(took.values()) > LEASE_S - 0.2
    assert max(took.values()) < LEASE_S + 3.0, took
