"""The acting part, with recording links and processes instead of real ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import Journal, read_journal
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.rules import Rules
from tarragon_hpc.orchestrator.service import Orchestrator
from tarragon_hpc.orchestrator.state import Phase, RunPhase
from tarragon_hpc.wire.common import Peer
from tarragon_hpc.wire.to_head import (
    Heartbeat,
    Ready,
    Register,
    Stopping,
    Suspect,
    TableApplied,
)
from tarragon_hpc.wire.to_worker import Fence, Shutdown, Table, Welcome

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = ["aw0", "ew0", "ew1"]
PRIMARIES, SHADOWS = {"ew0": [0], "ew1": [1]}, {"ew0": [1], "ew1": [0]}


class Link:
    """A worker's connection as the head sees it."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def send(self, *messages: Any) -> None:
        self.got += messages


class World:
    """An orchestrator, everything it touches, and a way to wait for what it does."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        shadows: bool = True,
        stores: int = 0,
        prepare: Any = None,
        **policy: float,
    ) -> None:
        self.workers = [*WORKERS, *(f"cs{n}" for n in range(stores))]
        self.journal = Journal(tmp_path / "journal.jsonl")
        self.calls: list[tuple[Any, ...]] = []
        self.fail: set[str] = set()
        self.links: dict[str, Link] = {}
        self.observed: list[ev.Event] = []
        self.changed = asyncio.Event()
        self.orchestrator = Orchestrator(
            ev.RunCreated(
                time.monotonic(),
                "r",
                self.workers,
                2,
                PRIMARIES,
                SHADOWS if shadows else {"ew0": [], "ew1": []},
                Rules(shadows=int(shadows)),
            ),
            journal=self.journal,
            launcher=self,
            policy=Policy(**({"start_timeout_s": 60.0} | policy)),
            silence_bound_s=0.2,
            observe=self.observe,
            prepare=prepare or (lambda workers, beside: None),
        )

    # Launcher
    def start(self, who: Incarnation) -> int:
        if who.worker in self.fail:
            raise ClusterError(f"cannot start {who}: no such program")
        self.calls.append(("start", who))
        return 100

    def stop(self, who: Incarnation, grace_s: float) -> None:
        self.calls.append(("stop", who, grace_s))

    def kill(self, who: Incarnation) -> None:
        self.calls.append(("kill", who))

    def observe(self, before, after, event) -> None:
        self.observed.append(event)
        self.changed.set()

    # The workers' side
    def register(self, worker: str) -> Link:
        self.links[worker] = Link()
        register = Register(worker, 1, 100, "host", {"path": f"/{worker}"})
        assert self.orchestrator.admit(self.links[worker], register) == Incarnation(worker, 1)
        return self.links[worker]

    async def until(self, condition) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def phase(self, worker: str) -> Phase:
        return self.orchestrator.state.workers[worker].phase

    async def bring_up(self) -> None:
        await self.until(lambda: self.phase(self.workers[-1]) is Phase.STARTING)
        for worker in self.workers:
            self.register(worker)
        await self.until(lambda: all(self.phase(w) is Phase.LOADING for w in self.workers))
        for worker in self.workers:
            self.orchestrator.receive(Ready(worker, 1, {}))
        await self.until(lambda: self.orchestrator.state.workers["aw0"].table_sent == 1)
        self.orchestrator.receive(TableApplied("aw0", 1, 1))
        await self.until(lambda: self.orchestrator.state.phase is RunPhase.RUNNING)

    def bring_down(self) -> None:
        self.orchestrator.stop("enough")
        for worker in self.workers:
            if self.phase(worker) is not Phase.DEAD:
                self.orchestrator.exited(Incarnation(worker, 1), 0)


@contextlib.asynccontextmanager
async def running(world: World):
    task = asyncio.create_task(world.orchestrator.run())
    try:
        yield task
    finally:
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        world.journal.close()
        if isinstance(result, Exception) and not isinstance(result, ClusterError):
            raise result


def test_a_run_is_brought_up_and_down_and_the_journal_tells_it_all(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world) as task:
            await world.bring_up()
            assert world.calls == [("start", Incarnation(w, 1)) for w in WORKERS]
            assert world.links["aw0"].got == [
                Welcome(0),
                Table(
                    1,
                    [["ew0", "ew1"], ["ew1", "ew0"]],
                    [Peer("ew0", 1, {"path": "/ew0"}), Peer("ew1", 1, {"path": "/ew1"})],
                ),
            ]
            assert world.links["ew0"].got == [Welcome(0, [0], [1])]
            world.orchestrator.stop("enough")
            await world.until(lambda: all(world.phase(w) is Phase.STOPPING for w in WORKERS))
            assert world.links["ew1"].got[-1] == Shutdown("enough")
            assert world.calls[3:] == [("stop", Incarnation(w, 1), 5.0) for w in WORKERS]
            for worker in WORKERS:
                world.orchestrator.receive(Stopping(worker, 1, "enough"))
                world.orchestrator.lost(Incarnation(worker, 1), "its connection was closed")
                world.orchestrator.exited(Incarnation(worker, 1), 0)
            state = await asyncio.wait_for(task, 10)
        assert state.phase is RunPhase.ENDED
        assert {w.phase for w in state.workers.values()} == {Phase.STOPPED}
        entries = [e.event for e in read_journal(tmp_path / "journal.jsonl")]
        assert replay(entries) == state
        assert entries[1:] == world.observed

    asyncio.run(scenario())


def test_nothing_is_done_before_the_journal_has_it(tmp_path: Path, monkeypatch):
    """At every action, the events that led to it can already be read back."""
    witnessed: list[tuple[str, set[str]]] = []

    async def scenario() -> None:
        world = World(tmp_path)
        real = world.start

        def start(who: Incarnation) -> int:
            written = {type(e.event).__name__ for e in read_journal(tmp_path / "journal.jsonl")}
            witnessed.append((who.worker, written))
            return real(who)

        monkeypatch.setattr(world, "start", start)
        async with running(world):
            await world.until(lambda: world.phase("ew1") is Phase.STARTING)

    asyncio.run(scenario())
    assert witnessed[0] == ("aw0", {"RunCreated"})


def test_a_head_that_cannot_remember_stops_deciding(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world) as task:
            await world.until(lambda: world.phase("ew1") is Phase.STARTING)

            def full(events: object) -> None:
                raise ClusterError("journal.jsonl: No space left on device")

            world.journal.append = full
            world.register("ew0")
            with pytest.raises(ClusterError, match="No space left"):
                await asyncio.wait_for(task, 10)
            assert world.links["ew0"].got == []

    asyncio.run(scenario())


def test_a_program_that_cannot_be_started_fails_the_run(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        world.fail.add("ew0")
        async with running(world) as task:
            await world.until(lambda: world.phase("ew1") is Phase.STOPPING)
            for worker in ("aw0", "ew1"):
                world.orchestrator.exited(Incarnation(worker, 1), -9)
            state = await asyncio.wait_for(task, 10)
        assert state.failed
        assert state.reason == "ew0 died during the start: cannot start ew0.1: no such program"
        assert ("stop", Incarnation("aw0", 1), 0.0) in world.calls

    asyncio.run(scenario())


def test_the_last_words_of_a_worker_are_heard_before_its_exit(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()
            ew0 = Incarnation("ew0", 1)
            world.orchestrator.exited(ew0, 0)
            world.orchestrator.receive(Stopping("ew0", 1, "SIGTERM"))
            world.orchestrator.lost(ew0, "its connection was closed")
            worker = world.orchestrator.state.workers["ew0"]
            assert (worker.phase, worker.reason, worker.exit) == (
                Phase.STOPPED,
                "SIGTERM",
                "exit status 0",
            )
            world.orchestrator.exited(Incarnation("ew1", 1), -9)  # its connection stays open
            await world.until(lambda: world.phase("ew1") is Phase.DEAD)
            assert world.orchestrator.state.stale == 0

    asyncio.run(scenario())


def test_a_process_that_begins_to_end_is_lost_before_its_exit_is_known(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()
            ew0 = Incarnation("ew0", 1)
            world.orchestrator.ending(ew0)
            await world.until(lambda: world.phase("ew0") is Phase.DEAD)
            lost = world.observed[-1]
            assert isinstance(lost, ev.WorkerLost)
            assert (lost.how, lost.reason) == ("process", "its process ended")
            world.orchestrator.lost(ew0, "its connection was closed")
            world.orchestrator.exited(ew0, -9)
            await world.until(lambda: world.orchestrator.state.workers["ew0"].exit)
            assert world.orchestrator.state.workers["ew0"].exit == "killed by SIGKILL"
            assert world.orchestrator.state.stale == 0

    asyncio.run(scenario())


def test_a_lost_worker_that_lingers_is_fenced(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path, exit_wait_s=0.05)
        async with running(world):
            await world.bring_up()
            world.orchestrator.lost(Incarnation("ew0", 1), "it sent garbage")
            await world.until(lambda: world.orchestrator.state.workers["ew0"].fenced)
            assert world.calls[-1] == ("kill", Incarnation("ew0", 1))
            assert world.phase("ew0") is Phase.DEAD

    asyncio.run(scenario())


def test_silence_and_its_end_are_noticed_by_the_clock_alone(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()

            def silent() -> list[str]:
                return [
                    w.worker for w in world.orchestrator.state.workers.values() if not w.responsive
                ]

            await world.until(lambda: len(silent()) == 3)
            world.orchestrator.hear(Incarnation("ew1", 1))
            world.orchestrator.receive(Heartbeat("ew1", 1, {"rows": 4.0}))
            await world.until(lambda: silent() == ["aw0", "ew0"])
            assert world.orchestrator.stats[Incarnation("ew1", 1)] == {"rows": 4.0}

    asyncio.run(scenario())


def test_suspicions_are_recorded_about_the_peer(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()
            world.orchestrator.receive(Suspect("aw0", 1, "ew1", 1, "no reply for 1 s"))
            (event,) = [e for e in world.observed if isinstance(e, ev.WorkerSuspected)]
            assert (event.worker, event.incarnation, event.by) == ("ew1", 1, "aw0.1")

    asyncio.run(scenario())


def test_messages_go_to_the_current_incarnation_or_nowhere(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()
            world.orchestrator.send("aw0", Fence("test"))
            assert world.links["aw0"].got[-1] == Fence("test")
            world.orchestrator.lost(Incarnation("aw0", 1), "gone")
            world.orchestrator.send("aw0", Fence("again"))
            assert world.links["aw0"].got[-1] == Fence("test")

    asyncio.run(scenario())


@pytest.mark.parametrize(("worker", "incarnation"), [("aw0", 2), ("aw0", 0), ("xx", 1), ("aw0", 1)])
def test_only_a_worker_that_is_waited_for_is_admitted(tmp_path: Path, worker, incarnation):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()
            register = Register(worker, incarnation, 1, "h", {})
            assert world.orchestrator.admit(Link(), register) is None
            assert world.orchestrator.state.stale == 1
            world.orchestrator.send("aw0", Fence("still the first"))
            assert world.links["aw0"].got[-1] == Fence("still the first")

    asyncio.run(scenario())


def test_repr_tells_the_state(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world) as task:
            await world.bring_up()
            assert repr(world.orchestrator) == (
                "Orchestrator(running, epoch=1, aw0.1 serving, ew0.1 serving, ew1.1 serving)"
            )
            world.bring_down()
            await asyncio.wait_for(task, 10)
            assert "Orchestrator(ended" in repr(world.orchestrator)

    asyncio.run(scenario())
