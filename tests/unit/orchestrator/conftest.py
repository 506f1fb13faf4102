"""A small run that tests take to a point of its life by the events that would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.apply import apply, begin
from tarragon_hpc.orchestrator.rules import Rules

if TYPE_CHECKING:
    from tarragon_hpc.orchestrator.state import State, Worker

WORKERS = ["aw0", "aw1", "ew0", "ew1"]


class Scenario:
    """2 AWs, 2 EWs of two experts each, and CSs if wanted; every event one second after the one
    before.
    """

    def __init__(
        self, rules: Rules | None = None, shadows: tuple[int, ...] = (), stores: int = 0
    ) -> None:
        self.workers = [*WORKERS, *(f"cs{n}" for n in range(stores))]
        self.created = ev.RunCreated(
            at=0.0,
            run="r",
            workers=self.workers,
            experts=4,
            primaries={"ew0": [0, 1], "ew1": [2, 3]},
            shadows={"ew0": [e for e in shadows if e > 1], "ew1": [e for e in shadows if e < 2]},
            rules=rules or Rules(),
        )
        self.events: list[ev.Event] = [self.created]
        self.state: State = begin(self.created)
        self.now = 0.0

    def happen(self, kind: type, *fields: object, **named: object) -> State:
        self.now += 1.0
        return self.record(kind(self.now, *fields, **named))

    def record(self, event: ev.Event) -> State:
        self.events.append(event)
        self.state = apply(self.state, event)
        return self.state

    def __getitem__(self, worker: str) -> Worker:
        return self.state.workers[worker]

    def started(self, *workers: str) -> Scenario:
        for worker in workers or self.workers:
            self.happen(ev.WorkerStarted, worker, 1, pid=100)
        return self

    def registered(self, *workers: str) -> Scenario:
        for worker in workers or self.workers:
            self.happen(ev.WorkerRegistered, worker, 1, 100, "host", {"shm": f"/s/{worker}"})
        return self

    def loading(self, *workers: str) -> Scenario:
        for worker in workers or self.workers:
            told = sorted(self.state.placement.of(worker))
            self.happen(ev.WorkerWelcomed, worker, self[worker].incarnation, told)
        return self

    def ready(self, *workers: str) -> Scenario:
        for worker in workers or self.workers:
            self.happen(ev.WorkerReady, worker, 1, {"blocks": 7})
        return self

    def told(self) -> Scenario:
        """Both AWs know the stores that serve."""
        for worker in WORKERS[:2] if self.state.stores else ():
            self.happen(ev.StoresSent, worker, 1, self.state.stores)
        return self

    def published(self) -> Scenario:
        table = [list(row) for row in self.state.placement.candidates()]
        self.happen(ev.TablePublished, 1, table)
        return self

    def taken(self, *workers: str) -> Scenario:
        for worker in workers or WORKERS[:2]:
            self.happen(ev.TableSent, worker, 1, 1)
            self.happen(ev.TableTaken, worker, 1, 1)
        return self

    def running(self) -> Scenario:
        return self.started().registered().loading().ready().told().published().taken()


@pytest.fixture
def scenario() -> Scenario:
    return Scenario()
