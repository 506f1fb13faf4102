"""Real EW processes, a head that says what they are to load, and AWs made of a Refe."""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tarragon_hpc.config.schema import TransportConfig
from tarragon_hpc.datapath.ert import ERT
from tarragon_hpc.datapath.refe import Refe
from tarragon_hpc.models.describe import describe
from tarragon_hpc.transport.auto import make_connector
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.wire.codec import head_decoder
from tarragon_hpc.wire.common import Peer
from tarragon_hpc.wire.stream import accept
from tarragon_hpc.wire.to_head import Heartbeat, Ready, Register
from tarragon_hpc.wire.to_worker import Welcome

if TYPE_CHECKING:
    from pathlib import Path

SECRET = bytes(range(32))
TIMEOUT_S = 30

PROGRAM = """
import json, sys
from pathlib import Path
from tarragon_hpc.config import load_config
from tarragon_hpc.wire.link import WorkerContext
from tarragon_hpc.expert.worker import main
a = json.loads(sys.argv[1])
status = main(WorkerContext(
    a["worker"], a["incarnation"], load_config(a["config"]), Path(a["dir"]),
    bytes.fromhex(a["secret"]), ("127.0.0.1", a["port"]), Path(a["dir"]), None,
))
print("torch" if "torch" in sys.modules else "no torch")
sys.exit(status)
"""


class FakeHead:
    """Accepts workers in a thread of its own; `take` waits for what one of them says."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._said: dict[str, queue.Queue[Any]] = {}
        self._connections: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="head", daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        self._server = started.result(TIMEOUT_S)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _start(self):
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader, writer) -> None:
        connection = await accept(reader, writer, SECRET, head_decoder())
        async for message in connection.messages():
            if isinstance(message, Register):
                self._connections[message.worker] = connection
            self.inbox(message.worker).put(message)
        await connection.close()

    def inbox(self, worker: str) -> queue.Queue[Any]:
        return self._said.setdefault(worker, queue.Queue())

    def take(self, worker: str, kind: type, *, skip: tuple[type, ...] = (Heartbeat,)) -> Any:
        while True:
            message = self.inbox(worker).get(timeout=TIMEOUT_S)
            if isinstance(message, kind):
                return message
            assert isinstance(message, skip), message

    def send(self, worker: str, message: Any) -> None:
        self._loop.call_soon_threadsafe(self._connections[worker].send, message)

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            for connection in self._connections.values():
                await connection.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()


class Cluster:
    """EW processes of one model, and AWs in this process."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.head = FakeHead()
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.peers: dict[str, Peer] = {}
        self.ready: dict[str, Ready] = {}
        self.refes: list[Refe] = []

    def start(self, worker: str, model: Path | str, **config: Any) -> Register:
        """Start an EW; returns what it registered with."""
        config = {"model": {"path": str(model)}, **config}
        arguments = {
            "worker": worker, "incarnation": 1, "config": config, "dir": self.directory,
            "secret": SECRET.hex(), "port": self.head.port,
        }  # fmt: skip
        self.processes[worker] = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.head.take(worker, Register)

    def serve(self, model: Path | str, placement: dict[str, list[int]], **config: Any) -> None:
        """Start all EWs of a placement and wait until they serve."""
        for worker in placement:
            register = self.start(worker, model, **config)
            self.peers[worker] = Peer(worker, register.incarnation, register.address)
        for worker, experts in placement.items():
            self.head.send(worker, Welcome(1, experts))
        for worker in placement:
            self.ready[worker] = self.head.take(worker, Ready)

    def refe(self, worker: str, model: Path | str, placement: dict[str, list[int]]) -> Refe:
        """An AW that routes by a placement."""
        spec = describe(model)
        bell = ProcessDoorbell()
        connector = make_connector(
            TransportConfig(), worker=worker, incarnation=1, secret=SECRET, bell=bell
        )
        refe = Refe(
            worker=worker, incarnation=1, connector=connector, bell=bell, experts=spec.experts,
            top_k=spec.top_k, hidden=spec.shape.hidden, dtype=spec.dtype, slots=2, slot_rows=32,
        )  # fmt: skip
        holders = [[w for w, held in placement.items() if e in held] for e in range(spec.experts)]
        assert refe.apply_table(ERT.of(1, holders), self.peers) == {}
        self.refes.append(refe)
        return refe

    def end(self, worker: str) -> tuple[int, str, str]:
        """Exit status and output of a worker that was told to go."""
        process = self.processes.pop(worker)
        out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err

    def close(self) -> None:
        for refe in self.refes:
            refe.close()
        for process in self.processes.values():
            process.kill()
            process.communicate()
        self.head.close()


@pytest.fixture
def cluster():
    with tempfile.TemporaryDirectory(prefix="tarragon-") as directory:  # short: sockets
        made = Cluster(directory)
        yield made
        made.close()


def routing(spec, rows: int, seed: int, *, skew: float = 1.0):
    """Hidden states, distinct experts per row, weights; `skew` > 1 prefers the first experts."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((rows, spec.shape.hidden)).astype(np.float32)
    preference = rng.random((rows, spec.experts)) * np.arange(spec.experts) ** (skew - 1)
    ids = np.argsort(preference, axis=1)[:, : spec.top_k].astype(np.int32)
    weights = rng.random((rows, spec.top_k)).astype(np.float32)
    return hidden, np.ascontiguousarray(ids), weights


@pytest.fixture(name="routing")
def _routing():
    return routing
