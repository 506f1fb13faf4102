"""The CS as a process: joins, keeps KV over shared memory, leaves in good order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tarragon_hpc.cluster.forkserver import READY
from tarragon_hpc.config.schema import TransportConfig
from tarragon_hpc.transport.auto import make_connector
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.wire import kv
from tarragon_hpc.wire.kv import Run
from tarragon_hpc.wire.to_head import Heartbeat, Ready, Register, Saved, Stopping
from tarragon_hpc.wire.to_worker import Drain, Save, Shutdown, Welcome
from tests.unit.checkpoint.frames import ROW_BYTES, ask, hello, put, read_fetch
from tests.unit.expert.conftest import SECRET, TIMEOUT_S, FakeHead

pytestmark = pytest.mark.native

PROGRAM = """
import json, sys
from pathlib import Path
from tarragon_hpc.config import load_config
from tarragon_hpc.wire.link import WorkerContext
from tarragon_hpc.checkpoint.worker import main
a = json.loads(sys.argv[1])
before = set(sys.modules)
status = main(WorkerContext(
    "cs0", 1, load_config(a["config"]), Path(a["dir"]),
    bytes.fromhex(a["secret"]), ("127.0.0.1", a["port"]), Path(a["dir"]), None,
))
print(*sorted({m.split(".")[0] for m in sys.modules} & {"torch", "vllm", "transformers"}))
print(*sorted(set(sys.modules) - before))
sys.exit(status)
"""


class Running:
    """A CS process and the head it talks to."""

    def __init__(self, directory):
        self.directory, self.head = directory, FakeHead()

    def start(self, **checkpoint):
        config = {
            "model": {"path": "unused"},
            "checkpoint": {"stores": 1, "memory": 1 << 20, **checkpoint},
            "detection": {"heartbeat_ms": 20},
        }
        arguments = {
            "config": config, "dir": self.directory, "secret": SECRET.hex(),
            "port": self.head.port,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.head.take("cs0", Register)

    def end(self):
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, out, err

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.head.close()


@pytest.fixture
def running():
    with tempfile.TemporaryDirectory(prefix="tarragon-") as directory:  # short: sockets
        made = Running(directory)
        yield made
        made.close()


def connect(register, bell):
    connector = make_connector(
        TransportConfig(), worker="aw0", incarnation=1, secret=SECRET, bell=bell
    )
    return connector.connect("cs0", 1, register.address, Geometry(2, 4096, 4096))


def exchange(channel, bell, frame):
    slot = channel.acquire()
    channel.request(slot)[: len(frame)] = frame
    channel.post(slot, len(frame))
    while (reply := channel.reply(slot)) is None:
        assert channel.lost is None
        bell.wait(bell.value(), 0.05)
    answer = bytes(reply)
    channel.release(slot)
    return answer


def test_keeps_what_an_aw_sends_and_says_so(running):
    register = running.start()
    running.head.send("cs0", Welcome(1))
    assert running.head.take("cs0", Ready) == Ready("cs0", 1, {"memory": 1 << 20})
    bell = ProcessDoorbell()
    channel = connect(register, bell)
    run = Run(5, 1, 0, 0, 20)
    for frame in (hello(sequence=1), put(2, [run])):
        assert kv.unpack_header(exchange(channel, bell, frame)).status == kv.STATUS_OK
    assert len(read_fetch(exchange(channel, bell, ask(kv.FETCH, 3, run)), ROW_BYTES).rows) == 20
    while True:
        stats = running.head.take("cs0", Heartbeat).stats
        if stats["kv_requests"]:
            break
    assert stats["kv_capacity_bytes"] == 1 << 20
    assert stats["kv_received_bytes"] == len(put(2, [run]))
    channel.close()
    running.head.send("cs0", Drain("enough"))
    assert running.head.take("cs0", Stopping).reason == "enough"
    status, out, err = running.end()
    heavy, later = out.splitlines()
    assert (status, heavy) == (0, ""), err
    assert later == "", "a fork server imports the worker only"


def test_what_it_saves_is_what_the_next_one_begins_with(running):
    bell = ProcessDoorbell()
    run = Run(kv.request_key("seq-1"), 1, 0, 0, 20)
    channel = connect(running.start(), bell)
    running.head.send("cs0", Welcome(1))
    running.head.take("cs0", Ready)
    for frame in (hello(sequence=1), put(2, [run])):
        exchange(channel, bell, frame)
    running.head.send("cs0", Save(["seq-1", "seq-2"], 9, 5.0))
    saved = running.head.take("cs0", Saved)
    (path,) = (Path(running.directory) / "kv").iterdir()
    assert saved == Saved("cs0", 1, 1, 20, path.stat().st_size)
    assert (path.name, path.stat().st_mode & 0o777) == ("cs0.kv", 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    channel.close()
    running.head.send("cs0", Shutdown("stop"))
    running.head.take("cs0", Stopping)
    assert running.end()[0] == 0
    channel = connect(running.start(), bell)
    running.head.send("cs0", Welcome(1))
    running.head.take("cs0", Ready)
    assert not path.exists()
    exchange(channel, bell, hello(sequence=1))
    exchange(channel, bell, ask(kv.LOOK, 2, run._replace(attempt=10)))
    answer = exchange(channel, bell, ask(kv.FETCH, 3, run._replace(attempt=10)))
    assert len(read_fetch(answer, ROW_BYTES).rows) == 20
    channel.close()


def test_a_file_that_tells_of_other_rows_than_the_aws_have_does_no_harm(running):
    folder = Path(running.directory) / "kv"
    folder.mkdir()
    (folder / "cs0.kv").write_bytes(hello((8, 12, 1)) + put(1, [Run(5, 1, 0, 0, 3)]))
    bell = ProcessDoorbell()
    channel = connect(running.start(), bell)
    running.head.send("cs0", Welcome(1))
    running.head.take("cs0", Ready)
    for frame in (hello(sequence=1), put(2, [Run(5, 1, 0, 0, 20)])):
        assert kv.unpack_header(exchange(channel, bell, frame)).status == kv.STATUS_OK
    channel.close()


def test_a_run_directory_that_cannot_be_written_is_named(running):
    (Path(running.directory) / "kv").write_text("in the way")
    running.start()
    running.head.send("cs0", Welcome(1))
    running.head.take("cs0", Ready)
    running.head.send("cs0", Save([], 9, 5.0))
    saved = running.head.take("cs0", Saved)
    assert (saved.requests, saved.nbytes) == (0, 0)
    assert saved.problem.endswith("/kv: File exists")
    running.head.send("cs0", Shutdown("stop"))
    assert running.end()[0] == 0


@pytest.mark.parametrize("how", ["shutdown", "sigterm"])
@pytest.mark.parametrize("welcome", [True, False])
def test_leaves_when_it_is_told_to(how, welcome, running):
    running.start()
    if welcome:
        running.head.send("cs0", Welcome(1))
        running.head.take("cs0", Ready)
    if how == "shutdown":
        running.head.send("cs0", Shutdown("stop"))
    else:
        running.process.send_signal(signal.SIGTERM)
    reason = running.head.take("cs0", Stopping).reason
    assert reason == {"shutdown": "stop", "sigterm": "SIGTERM"}[how]
    status, _, err = running.end()
    assert status == 0, err


def test_memory_that_cannot_be_had_ends_it_with_the_key_in_the_error(running):
    running.start(memory=1 << 62)
    running.head.send("cs0", Welcome(1))
    status, _, err = running.end()
    assert status != 0
    assert "ClusterError: checkpoint.memory: 4611686018427387904 bytes cannot be had" in err


def test_a_fork_server_has_nothing_against_it():
    """Its imports start no thread: workers of this role can be forked."""
    ours, theirs = socket.socketpair()
    command = [
        sys.executable, "-m", "tarragon_hpc.cluster.forkserver", "--role", "cs",
        "--run-dir", "unused", "--parent", str(os.getpid()), "--socket", str(theirs.fileno()),
    ]  # fmt: skip
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        ours.settimeout(TIMEOUT_S)
        said = ours.recv(100)
        ours.close()
        assert process.wait(TIMEOUT_S) == 0
    assert said == READY
