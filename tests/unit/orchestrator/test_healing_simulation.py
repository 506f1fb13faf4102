"""Whatever happens, in whatever order: the run heals, ends in a clear state, and falls silent."""

from __future__ import annotations

import os
import random

import pytest

from tarragon_hpc.config import ExpertsConfig
from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.state import RunPhase
from tests.unit.orchestrator.simulation import World

SEEDS = int(os.environ.get("TARRAGON_SIMULATIONS", "150"))


def make(seed: int) -> World:
    rng = random.Random(seed)
    ews = rng.randint(1, 6)
    experts = rng.randint(ews, 14)
    shadows = rng.randint(0, min(2, ews - 1))
    tight = -(-experts // ews) + rng.randint(0, 3)
    config = ExpertsConfig(
        workers=ews,
        shadows=shadows,
        on_missing=rng.choice(["load", "load", "mask", "wait"]),
        memory=rng.choice([None, tight]),
        frequencies=rng.choice([None, [rng.random() for _ in range(experts)]]),
    )
    stores = rng.choice([0, 1, 2, 3])
    replicas = rng.randint(1, min(2, stores)) if stores else 0
    world = World(rng, experts, config, rng.randint(1, 3), stores, replicas)
    world.act()
    world.step(30)
    assert world.state.phase is RunPhase.RUNNING
    return world


def misfortune(world: World) -> None:
    """One random thing that goes wrong, or that somebody wants."""
    rng = world.rng
    alive = [p for p in world.processes.values() if p.alive]
    process = rng.choice(alive) if alive else None
    what = rng.random()
    if process is None or what < 0.15:
        role = rng.choice(list(Role))
        before = world.state
        if world.scale(role, rng.randint(0, 8)) is not None:
            assert world.state is before
    elif what < 0.6:
        world.die(process)
    elif what < 0.75:
        worker = world.state.workers.get(process.who.worker)
        if worker is not None and worker.live and worker.responsive:
            world.record(ev.WorkerSilent(world.now, *process.who, 1.0))
            if rng.random() < 0.5:
                world.tell(process, ev.WorkerHeard)
    elif what < 0.85:
        world.leave(process, "SIGTERM")
    else:
        masked = ("overdue", 0.01, 0.01, 0.0, 3)
        world.record(ev.WorkerSuspected(world.now, *process.who, "aw0.1", "slow"))
        world.record(ev.FailureMasked(world.now, *process.who, "aw0.1", *masked))
        world.record(ev.WorkerCleared(world.now, *process.who, "aw0.1"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_it_heals(seed):
    world = make(seed)
    rng = world.rng
    for _ in range(rng.randint(1, 12)):
        world.trouble = rng.choice([0, 0, 0.3, 0.9])
        misfortune(world)
        world.step(rng.choice([0.0, 0.05, 0.5, 3, 20]))
    world.trouble = 0.0
    world.settle()
    world.check_settled()
    assert replay(world.events) == world.state


@pytest.mark.parametrize("seed", range(10))
def test_a_crash_loop_of_everything_ends(seed):
    world = make(seed)
    world.trouble = 1.0
    for process in list(world.processes.values()):
        world.die(process)
    world.settle()
    assert all(w.given_up for w in world.state.workers.values())
    assert not any(map(len, world.state.table))
    starts = [e for e in world.events if isinstance(e, ev.WorkerStarted)]
    assert len(starts) <= len(world.state.workers) * 5
