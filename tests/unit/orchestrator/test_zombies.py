"""Workers on Slurm: what is reported of their steps need not be true of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.state import Phase
from tarragon_hpc.wire.to_head import Register
from tarragon_hpc.wire.to_worker import Fence
from tests.unit.orchestrator.test_service import Link, World, running

if TYPE_CHECKING:
    from pathlib import Path


def test_who_is_reported_gone_and_still_connected_is_a_zombie(tmp_path: Path):
    """Its srun or its node's slurmd has died, and it serves on: it must not."""

    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()
            ew0 = Incarnation("ew0", 1)
            world.orchestrator.reported_gone(ew0, "node failure on n3")
            await world.until(lambda: ("start", Incarnation("ew0", 2)) in world.calls)
            fence = world.links["ew0"].got[-1]
            assert fence == Fence("node failure on n3, and yet it runs")
            assert world.calls[-2:] == [("kill", ew0), ("start", Incarnation("ew0", 2))]
            (lost,) = (e for e in world.observed if isinstance(e, ev.WorkerLost))
            assert lost.how == ev.ZOMBIE
            # It knows better than to come back.
            register = Register("ew0", 1, 100, "host", {})
            assert world.orchestrator.admit(Link(), register) is None
            world.orchestrator.lost(ew0, "its connection was closed")

    asyncio.run(scenario())


def test_who_is_reported_gone_and_cut_off_has_ended(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.bring_up()
            ew0, ew1 = Incarnation("ew0", 1), Incarnation("ew1", 1)
            world.orchestrator.reported_gone(ew0, "killed by SIGKILL")
            world.orchestrator.lost(ew0, "its connection was closed")
            world.orchestrator.lost(ew1, "its connection was closed")
            world.orchestrator.reported_gone(ew1, "its step was cancelled")
            found = {e.worker: e.exit for e in world.observed if isinstance(e, ev.WorkerExited)}
            assert found == {"ew0": "killed by SIGKILL", "ew1": "its step was cancelled"}
            await asyncio.sleep(0.3)
            assert not any(getattr(e, "how", "") == ev.ZOMBIE for e in world.observed)
            assert not any(call[0] == "kill" for call in world.calls)

    asyncio.run(scenario())


def test_a_worker_says_which_step_of_slurm_it_is(tmp_path: Path):
    async def scenario() -> None:
        world = World(tmp_path)
        async with running(world):
            await world.until(lambda: world.phase("ew1") is Phase.STARTING)
            register = Register("ew0", 1, 100, "host", {}, step="7.3", node="n2")
            world.orchestrator.admit(Link(), register)
            worker = world.orchestrator.state.workers["ew0"]
            assert (worker.step, worker.node, worker.place) == ("7.3", "n2", "n2")
            assert world.orchestrator.step_of(Incarnation("ew0", 1)) == "7.3"
            assert world.orchestrator.step_of(Incarnation("ew0", 2)) == ""
            assert world.orchestrator.step_of(Incarnation("ew9", 1)) == ""

    asyncio.run(scenario())
