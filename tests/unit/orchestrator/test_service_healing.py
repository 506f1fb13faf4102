"""What the acting part sends and starts when the run heals or is scaled."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.state import Phase
from tarragon_hpc.wire.common import Peer
from tarragon_hpc.wire.to_head import Cleared, Holding, Masked, Ready, Register, TableApplied
from tarragon_hpc.wire.to_worker import Drain, Load, Stores, Table, Unload, Welcome
from tests.unit.orchestrator.test_service import Link, World, running

if TYPE_CHECKING:
    from pathlib import Path


def join(world: World, worker: str, incarnation: int = 2) -> Link:
    link = world.links[worker] = Link()
    register = Register(worker, incarnation, 100, "host", {"path": f"/{worker}.{incarnation}"})
    assert world.orchestrator.admit(link, register) == Incarnation(worker, incarnation)
    return link


async def sent(world: World, worker: str, kind: type):
    await world.until(lambda: any(isinstance(m, kind) for m in world.links[worker].got))
    return next(m for m in reversed(world.links[worker].got) if isinstance(m, kind))


def test_a_loss_is_routed_around_filled_and_undone(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path, shadows=False)
        async with running(world):
            await world.bring_up()
            orchestrator = world.orchestrator
            orchestrator.exited(Incarnation("ew1", 1), -9)
            await world.until(lambda: orchestrator.state.workers["aw0"].table_sent == 2)
            assert (await sent(world, "aw0", Table)).candidates == [["ew0"], []]
            assert await sent(world, "ew0", Load) == Load([1])
            orchestrator.receive(Holding("ew0", 1, [0, 1]))
            await world.until(lambda: ("start", Incarnation("ew1", 2)) in world.calls)
            await world.until(lambda: orchestrator.state.workers["aw0"].table_sent == 3)
            assert (await sent(world, "aw0", Table)).candidates == [["ew0"], ["ew0"]]
            join(world, "ew1")
            await world.until(lambda: world.phase("ew1") is Phase.LOADING)
            orchestrator.receive(Ready("ew1", 2, {"experts": [1], "shadows": []}))
            await world.until(lambda: orchestrator.state.workers["aw0"].table_sent == 4)
            table = await sent(world, "aw0", Table)
            assert table.candidates == [["ew0"], ["ew1"]]
            assert [p.address for p in table.peers] == [{"path": "/ew0"}, {"path": "/ew1.2"}]
            orchestrator.receive(TableApplied("aw0", 1, 4))
            assert await sent(world, "ew0", Unload) == Unload([1])
            await world.until(lambda: orchestrator.state.workers["ew0"].dropping)
            orchestrator.receive(Holding("ew0", 1, [0]))
            ew0 = orchestrator.state.workers["ew0"]
            assert (ew0.holds, ew0.dropping) == ({0}, frozenset())

    asyncio.run(scenario())


def test_what_aws_did_by_themselves_reaches_the_observers(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()
            world.orchestrator.receive(Masked("aw0", 1, "ew1", 1, "lost", 0.3, 0.2, 0.1, 12))
            world.orchestrator.receive(Cleared("aw0", 1, "ew1", 1))
            masked, cleared = world.observed[-2:]
            assert isinstance(masked, ev.FailureMasked)
            assert masked.worker == "ew1"
            assert (masked.by, masked.how, masked.pairs) == ("aw0.1", "lost", 12)
            assert (masked.detected_ago_s, masked.rerouted_ago_s, masked.answered_ago_s) == (
                0.3,
                0.2,
                0.1,
            )
            assert isinstance(cleared, ev.WorkerCleared)

    asyncio.run(scenario())


def test_scaling_starts_places_and_drains(tmp_path: Path):
    async def scenario() -> None:
        asked = []

        def prepare(workers: list[str], beside: list[str]) -> str | None:
            asked.append((workers, beside))
            return "no room" if len(asked) == 1 else None

        world = World(tmp_path, prepare=prepare)
        async with running(world):
            await world.bring_up()
            before = world.orchestrator.state
            assert world.orchestrator.scale("ew", 1) == (
                "ew=1: experts.shadows is 1, and shadows sit on other EWs; at least ew=2"
            )
            assert world.orchestrator.scale("aw", 2) == "aw=2: no room"
            assert world.orchestrator.state is before
            assert world.orchestrator.scale("aw", 2) is None
            assert asked[1] == (["aw1"], ["aw0", "ew0", "ew1"])
            await world.until(lambda: ("start", Incarnation("aw1", 1)) in world.calls)
            join(world, "aw1", 1)
            await world.until(lambda: world.phase("aw1") is Phase.LOADING)
            world.orchestrator.receive(Ready("aw1", 1, {}))
            await sent(world, "aw1", Table)
            world.orchestrator.receive(TableApplied("aw1", 1, 1))
            assert world.orchestrator.scale("aw", 1) is None
            assert await sent(world, "aw1", Drain) == Drain("scaled to aw=1")
            drained = [e for e in world.observed if isinstance(e, ev.WorkerDrained)]
            assert [e.worker for e in drained] == ["aw1"]
            world.orchestrator.exited(Incarnation("aw1", 1), 0)
            world.orchestrator.lost(Incarnation("aw1", 1), "its connection was closed")
            await world.until(lambda: "aw1" not in world.orchestrator.state.workers)
            world.orchestrator.send("aw1", Drain("to nobody"))

    asyncio.run(scenario())


def test_aws_are_told_where_the_stores_are(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path, stores=1)
        async with running(world):
            await world.bring_up()
            got = world.links["aw0"].got
            assert [type(m) for m in got] == [Welcome, Stores, Table]
            assert got[1] == Stores([Peer("cs0", 1, {"path": "/cs0"})])
            assert world.links["cs0"].got == [Welcome(0)]
            world.orchestrator.exited(Incarnation("cs0", 1), -9)
            await world.until(lambda: ("start", Incarnation("cs0", 2)) in world.calls)
            assert got[-1] == Stores([])
            join(world, "cs0")
            await world.until(lambda: world.phase("cs0") is Phase.LOADING)
            world.orchestrator.receive(Ready("cs0", 2, {}))
            await world.until(lambda: world.orchestrator.state.workers["aw0"].stores)
            assert got[-1] == Stores([Peer("cs0", 2, {"path": "/cs0.2"})])

    asyncio.run(scenario())


def test_the_end_of_a_process_reaches_the_observers_before_the_disk(tmp_path: Path):
    """What an AW ran goes on elsewhere at the first sign of its end, whatever the disk does."""

    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()
            world.journal.append = lambda events: time.sleep(0.5)
            began = time.monotonic()
            world.orchestrator.record(ev.WorkerSilent(began, "ew0", 1, 1.0))
            await asyncio.sleep(0.01)
            world.orchestrator.ending(Incarnation("aw0", 1))
            await world.until(lambda: world.phase("aw0") is Phase.DEAD)
            assert isinstance(world.observed[-1], ev.WorkerLost)
            assert time.monotonic() - began < 0.3

    asyncio.run(scenario())
