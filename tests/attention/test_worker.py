"""The AW's process under a stand-in for the head: its whole life, and ends of all kinds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import create_run, run_secret, write_head
from tarragon_hpc.config import load_config
from tarragon_hpc.wire.codec import head_decoder
from tarragon_hpc.wire.common import Peer, SamplingSpec
from tarragon_hpc.wire.stream import accept
from tarragon_hpc.wire.to_head import (
    Failed,
    Heartbeat,
    Ready,
    Refused,
    Register,
    Stopping,
    Suspect,
    TableApplied,
)
from tarragon_hpc.wire.to_worker import Drain, Shutdown, Submit, Table, Welcome

pytestmark = pytest.mark.native


class Head:
    """Starts one AW and talks to it."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        self.messages: asyncio.Queue = asyncio.Queue()
        self.heartbeats: asyncio.Queue = asyncio.Queue()
        self.connected = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Head:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        config = load_config(
            {
                "model": {"path": str(self.model), "max_model_len": 256},
                "attention": {"kv_cache": 32 << 20, "threads": 1},
                "experts": {"missing_timeout_s": 0.5},
            }
        )
        run_dir = create_run(config, self.root / "run")
        self.runtime_dir = self.root / "rt"
        self.runtime_dir.mkdir(mode=0o700)
        self.secret = run_secret(run_dir)
        write_head(
            run_dir,
            HeadRecord("run", os.getpid(), "here", "127.0.0.1", port, "", str(self.runtime_dir)),
        )
        command = [sys.executable, "-m", "tarragon_hpc.cluster.entry", "--worker", "aw0"]
        command += ["--incarnation", "3", "--run-dir", str(run_dir)]
        self.log = self.root / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.server.close()
        if self.connected.done():
            await self.connected.result().close()

    async def _serve(self, reader, writer) -> None:
        connection = await accept(reader, writer, self.secret, head_decoder())
        self.connected.set_result(connection)
        with contextlib.suppress(ConnectionError):
            async for message in connection.messages():
                beat = isinstance(message, Heartbeat)
                await (self.heartbeats if beat else self.messages).put(message)

    async def next(self, kind, seconds: float = 60):
        """The next message, which must be of this kind."""
        try:
            message = await asyncio.wait_for(self.messages.get(), seconds)
        except TimeoutError:
            pytest.fail(f"no {kind.__name__}; log:\n{self.log.read_text()}")
        assert isinstance(message, kind), f"{message}; log:\n{self.log.read_text()}"
        return message

    async def stats_with(self, name: str) -> dict[str, float]:
        """The stats of the first heartbeat in which this number is not 0."""
        async with asyncio.timeout(10):
            while not (stats := (await self.heartbeats.get()).stats).get(name):
                pass
            return stats

    async def send(self, *messages) -> None:
        (await self.connected).send(*messages)

    async def exit_status(self) -> int:
        return await asyncio.to_thread(self.process.wait, 60)


def rendezvous_files() -> set[str]:
    return {p.name for p in Path(tempfile.gettempdir()).glob("vllm_dist_*")}


def test_a_whole_life_without_an_expert_in_reach(tmp_path, tiny_models):
    model, before = tiny_models("mixtral"), rendezvous_files()
    greedy = SamplingSpec(max_tokens=4, temperature=0)

    async def scenario() -> None:
        async with Head(tmp_path, model) as head:
            register = await head.next(Register)
            assert (register.worker, register.incarnation) == ("aw0", 3)
            await head.send(Welcome(0))
            ready = await head.next(Ready, 200)
            assert ready.detail["model"] == str(model)
            assert ready.detail["kv_blocks"] > 1
            assert ready.detail["rss"] > 1 << 20

            await head.send(Submit("early", [5, 6], greedy))
            assert "no routing table" in (await head.next(Failed)).reason
            nowhere = Peer("ew0", 8, {"kind": "shm", "path": str(head.runtime_dir / "none")})
            await head.send(Table(1, [["ew0"]] * 8, [nowhere]))
            suspect = await head.next(Suspect)
            assert (suspect.peer, suspect.peer_incarnation) == ("ew0", 8)
            assert (await head.next(TableApplied)).epoch == 1

            await head.send(Submit("lost", [5, 6], greedy))
            failed = await head.next(Failed)
            assert failed.requests == ["lost"]
            assert "ew0" in failed.reason
            await head.send(Submit("bad", [5, 99_999], greedy))
            refused = await head.next(Refused)
            assert (refused.request, refused.param) == ("bad", "prompt")
            stats = await head.stats_with("lost_steps")
            assert stats.keys() >= {"running", "waiting", "kv_use", "refe_dispatches"}

            await head.send(Drain("that was it"))
            assert (await head.next(Stopping)).reason == "that was it"
            assert await head.exit_status() == 0
            assert list(head.runtime_dir.iterdir()) == []
            assert "Traceback" not in head.log.read_text()

    asyncio.run(scenario())
    assert rendezvous_files() <= before


@pytest.mark.parametrize("how", ["Shutdown", "SIGTERM"])
def test_it_leaves_at_once_while_it_starts(how, tmp_path, tiny_models):
    model = tiny_models("mixtral")

    async def scenario() -> None:
        async with Head(tmp_path, model) as head:
            await head.next(Register)
            await head.send(Welcome(0))
            if how == "SIGTERM":
                head.process.send_signal(signal.SIGTERM)
            else:
                await head.send(Shutdown("enough"))
            assert "during the start" in (await head.next(Stopping, 60)).reason
            assert await head.exit_status() == 0
            assert "Traceback" not in head.log.read_text()

    asyncio.run(scenario())


def test_a_model_that_is_not_there_is_one_line_and_status_2(tmp_path):
    async def scenario() -> None:
        async with Head(tmp_path, tmp_path / "nowhere") as head:
            await head.next(Register)
            await head.send(Welcome(0))
            assert await head.exit_status() == 2
            last = head.log.read_text().splitlines()[-1]
            assert f"{tmp_path}/nowhere: no such directory" in last
            assert "Traceback" not in head.log.read_text()

    asyncio.run(scenario())
