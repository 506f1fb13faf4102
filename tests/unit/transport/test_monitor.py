"""The thread that watches descriptors, and what tells it of a peer's end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

from tarragon_hpc.transport.monitor import Monitor
from tarragon_hpc.transport.watch import BYE, PeerWatch

SOON = 20.0


def test_callbacks_come_from_one_thread_that_lives_as_long_as_it_is_needed():
    monitor = Monitor("test-monitor")
    called = threading.Event()
    names = []
    a, b = os.pipe(), os.pipe()

    def read():
        names.append(threading.current_thread().name)
        os.read(a[0], 1)
        called.set()

    for _ in range(2):
        monitor.watch(a[0], read)
        monitor.watch(b[0], lambda: None)
        assert [t.name for t in threading.enumerate()].count("test-monitor") == 1
        called.clear()
        os.write(a[1], b"x")
        assert called.wait(SOON)
        monitor.forget(a[0])
        monitor.forget(a[0])  # twice is harmless
        monitor.forget(b[0])
        assert "test-monitor" not in [t.name for t in threading.enumerate()]
    assert names == ["test-monitor"] * 2
    for fd in (*a, *b):
        os.close(fd)


def told(sock, act):
    """What a watch on `sock` says after `act`."""
    reasons, gone = [], threading.Event()

    def on_gone(reason):
        reasons.append(reason)
        gone.set()

    watch = PeerWatch(sock, Monitor("test-watch"), on_gone, lambda: None)
    act()
    assert gone.wait(SOON)
    watch.stop()
    return reasons


def test_the_reason_tells_how_the_peer_went():
    ours, theirs = socket.socketpair()
    assert told(ours, theirs.close) == ["process gone (connection closed)"]
    ours, theirs = socket.socketpair()
    assert told(ours, lambda: theirs.send(BYE)) == ["closed by peer"]
    theirs.close()
    ours, theirs = socket.socketpair()
    assert told(ours, lambda: theirs.send(b"what")) == ["peer sent garbage"]
    theirs.close()


def test_stop_says_farewell_and_is_told_to_nobody():
    ours, theirs = socket.socketpair()
    reasons = []
    watch = PeerWatch(ours, Monitor("test-watch"), reasons.append, lambda: None)
    watch.stop()
    watch.stop()
    assert theirs.recv(10) == BYE
    assert theirs.recv(10) == b""
    assert reasons == []
    theirs.close()


FORKING_CLIENT = """
import os, signal, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
child = os.fork()
if child:
    print(child, flush=True)
signal.pause()
"""


def test_an_exit_is_seen_even_if_a_child_has_inherited_the_socket(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        with subprocess.Popen(
            [sys.executable, "-c", FORKING_CLIENT, path], stdout=subprocess.PIPE, text=True
        ) as parent:
            child = int(parent.stdout.readline())
            sock, _ = server.accept()
            assert told(sock, parent.kill) == ["process gone (exited)"]
            os.kill(child, signal.SIGKILL)
