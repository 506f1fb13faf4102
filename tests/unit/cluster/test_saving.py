"""At a handover all stores are asked to save, and none is waited for longer than it may take."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tarragon_hpc.cluster import saving as module
from tarragon_hpc.cluster.saving import Saving
from tarragon_hpc.wire.to_head import Saved
from tarragon_hpc.wire.to_worker import Save


class World:
    """The orchestrator, as far as it matters, and what is said to it and by it."""

    def __init__(self, **stores):
        self.stores = {
            name: SimpleNamespace(worker=name, incarnation=n, serves=True, responsive=True)
            for name, n in stores.items()
        }
        self.state = SimpleNamespace(of=lambda role: self.stores.values())
        self.sent, self.told = [], []
        self.saving = Saving(lambda: self, lambda event, **detail: self.told.append(detail))

    def send(self, worker, message):
        self.sent.append((worker, message))


def test_it_ends_with_the_last_answer():
    async def scenario():
        world = World(cs0=1, cs1=2)
        task = asyncio.create_task(world.saving.save(["a"], 7, 60.0))
        await asyncio.sleep(0.01)
        assert dict(world.sent) == dict.fromkeys(("cs0", "cs1"), Save(["a"], 7, 60.0))
        world.saving.on_saved(Saved("cs0", 1, 1, 5, 100))
        await asyncio.sleep(0.01)
        assert not task.done()
        world.saving.on_saved(Saved("cs1", 2, 0, 0, 0, "disk full"))
        await asyncio.wait_for(task, 5)
        assert [line["worker"] for line in world.told] == ["cs0", "cs1"]
        assert "problem" not in world.told[0]
        assert world.told[1]["problem"] == "disk full"

    asyncio.run(scenario())


def test_a_store_that_dies_or_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "_GRACE_S", 0.05)

    async def scenario():
        world = World(cs0=1, cs1=1)
        task = asyncio.create_task(world.saving.save(["a"], 7, 60.0))
        await asyncio.sleep(0.01)
        world.stores["cs0"].serves = world.stores["cs1"].responsive = False
        await asyncio.wait_for(task, 5)
        world.stores = World(cs2=1).stores
        await asyncio.wait_for(world.saving.save(["a"], 7, 0.0), 5)
        silent = {"incarnation": 1, "problem": "it did not answer"}
        assert world.told == [{"worker": f"cs{n}", **silent} for n in range(3)]

    asyncio.run(scenario())


@pytest.mark.parametrize(("stores", "requests"), [({}, ["a"]), ({"cs0": 1}, [])])
def test_with_nothing_to_save_nobody_is_asked(stores, requests):
    world = World(**stores)
    asyncio.run(world.saving.save(requests, 7, 60.0))
    assert world.sent == world.told == []
