"""A run whose workers are simulated: they answer late, die, fall silent and fail to load.

Time is an argument, so a day of failures takes a second. What must never happen is asserted at
every step.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tarragon_hpc.ids import Incarnation, Role, parse_worker_id
from tarragon_hpc.orchestrator import actions as ac
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator import scaling
from tarragon_hpc.orchestrator.apply import apply, begin
from tarragon_hpc.orchestrator.outcomes import outcome
from tarragon_hpc.orchestrator.placement import place
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.rules import Rules
from tarragon_hpc.orchestrator.state import GONE, Phase, RunPhase

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tarragon_hpc.config import ExpertsConfig

POLICY = Policy(
    start_timeout_s=20,
    stopped_grace_s=3,
    max_restarts=4,
    restart_window_s=60,
    backoff_limit_s=5,
    load_batch=2,
    load_timeout_s=5,
    load_retry_s=1,
    load_retry_limit_s=4,
)


@dataclass(eq=False)
class Process:
    """The truth about one incarnation, which the head can only learn from messages."""

    who: Incarnation
    alive: bool = True
    busy: float = 0.0
    holds: set[int] = field(default_factory=set)
    table: tuple[tuple[str, ...], ...] = ()
    peers: dict[str, Process] = field(default_factory=dict)
    stores: dict[str, int] = field(default_factory=dict)


class World:
    """`trouble` 0..1: how often workers that start crash and loads fail."""

    def __init__(
        self,
        rng: random.Random,
        experts: int,
        config: ExpertsConfig,
        aws: int,
        stores: int = 0,
        replicas: int = 0,
    ) -> None:
        self.rng = rng
        self.now = 0.0
        self.trouble = 0.0
        placement = place(experts, config, 1)
        rules = Rules(
            config.on_missing, config.shadows, config.memory, config.frequencies, replicas
        )
        created = ev.RunCreated(
            0.0,
            "r",
            [
                *(f"aw{n}" for n in range(aws)),
                *placement.primaries,
                *(f"cs{n}" for n in range(stores)),
            ],
            experts,
            {w: list(e) for w, e in placement.primaries.items()},
            {w: list(e) for w, e in placement.shadows.items()},
            rules,
        )
        self.state = begin(created)
        self.events: list[ev.Event] = [created]
        self.processes: dict[Incarnation, Process] = {}
        self.buried: set[Incarnation] = set()
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    # What the head sees and does.

    def record(self, event: ev.Event) -> None:
        self.events.append(event)
        self.state = apply(self.state, event)
        self.check()

    def act(self) -> int:
        """Everything that is to be done now, until nothing is; returns how much that was."""
        for rounds in range(1000):
            actions = plan(self.state, self.now, POLICY)
            for action in actions:
                self.perform(action)
            if not actions:
                return rounds
        raise AssertionError(f"never quiet: {actions}")

    def perform(self, action: ac.Action) -> None:
        event = outcome(action, self.state, self.now)
        match action:
            case ac.Start():
                self.start(Incarnation(action.worker, action.incarnation))
                return
            case ac.Publish():
                for row in action.table:
                    assert all(self.state.workers[w].live for w in row)
                    assert len(set(row)) == len(row)
            case ac.SendTable():
                # Before it can serve an AW knows the stores.
                assert self.state.workers[action.worker].stores == self.state.stores
            case ac.SendStores():
                assert self.state.workers[action.worker].incarnation == action.incarnation
                for store in action.stores.items():
                    assert Incarnation(*store) not in self.buried
            case ac.Stop() if self.state.phase is RunPhase.RUNNING:
                aws = (w for w in self.state.of(Role.AW) if w.listens)
                assert not any(action.worker in aw.stores for aw in aws)
            case ac.Abandon():
                assert action.reason.startswith("given up after")
            case ac.Load() | ac.Unload():
                worker = self.state.workers[action.worker]
                assert worker.live
                assert worker.incarnation == action.incarnation
            case _:
                pass
        if event is not None:
            self.record(event)
        process = self.processes.get(self.current(getattr(action, "worker", "")))
        if process is not None and process.alive:
            self.obey(process, action)

    def current(self, worker: str) -> Incarnation:
        known = self.state.workers.get(worker)
        return Incarnation(worker, known.incarnation if known else 0)

    def scale(self, role: Role, count: int) -> str | None:
        problem = scaling.refuse(self.state, role, count)
        if problem is None:
            for event in scaling.scale(self.state, role, count, self.now):
                self.record(event)
        return problem

    # What the workers do.

    def start(self, who: Incarnation) -> None:
        assert who not in self.processes, "an incarnation is never used again"
        process = self.processes[who] = Process(who)
        self.record(ev.WorkerStarted(self.now, *who, 100))
        if self.rng.random() < self.trouble:
            self.later(process, lambda: self.die(process))
        else:
            self.tell(process, ev.WorkerRegistered, 100, "node", {})

    def obey(self, process: Process, action: ac.Action) -> None:
        match action:
            case ac.Greet():
                experts, shadows = list(action.experts or ()), list(action.shadows or ())
                process.holds = {*experts, *shadows}
                detail = {"experts": experts, "shadows": shadows}
                self.tell(process, ev.WorkerReady, detail if action.experts is not None else {})
            case ac.SendTable():
                table, epoch = self.state.table, self.state.epoch
                peers = {w: self.processes[self.current(w)] for row in table for w in row}
                self.later(process, lambda: self.route(process, epoch, table, peers))
            case ac.SendStores():
                stores = dict(action.stores)
                self.later(process, lambda: setattr(process, "stores", stores))
            case ac.Load() | ac.Unload():
                if self.rng.random() < self.trouble / 9:
                    process.busy += 8  # it hangs
                if isinstance(action, ac.Unload):
                    process.holds -= set(action.experts)
                bad = isinstance(action, ac.Load) and self.rng.random() < self.trouble / 3
                experts = () if bad or isinstance(action, ac.Unload) else action.experts
                self.later(process, lambda: self.hold(process, experts, bad))
            case ac.Fence() if process.alive:
                self.die(process)
            case ac.Stop() | ac.Drain():
                self.later(process, lambda: self.leave(process, action.reason))
            case _:
                pass

    def route(self, process, epoch, table, peers) -> None:
        process.table, process.peers = table, peers
        self.record(ev.TableTaken(self.now, *process.who, epoch))

    def hold(self, process: Process, experts: tuple[int, ...], bad: bool) -> None:
        process.holds |= set(experts)
        capacity = self.state.rules.capacity
        assert capacity is None or len(process.holds) <= capacity
        error = "no such file" if bad else None
        self.record(ev.HoldingReported(self.now, *process.who, sorted(process.holds), error))

    def leave(self, process: Process, reason: str) -> None:
        self.record(ev.WorkerLeaving(self.now, *process.who, reason))
        self.die(process)

    def die(self, process: Process) -> None:
        """The connection ends and the exit becomes known; either may come first."""
        process.alive = False
        news = [
            lambda: self.record(
                ev.WorkerLost(self.now, *process.who, "connection", "its connection was closed")
            ),
            lambda: self.record(ev.WorkerExited(self.now, *process.who, "killed by SIGKILL")),
        ]
        self.rng.shuffle(news)
        for piece in news:
            self.soon(piece)

    def tell(self, process: Process, kind: type, *fields: object) -> None:
        self.later(process, lambda: self.record(kind(self.now, *process.who, *fields)))

    def later(self, process: Process, what: Callable[[], None]) -> None:
        """In order for each process, as on a connection; nothing comes from the dead."""
        self.soon(lambda: process.alive and what(), process)

    def soon(self, what: Callable[[], object], process: Process | None = None) -> None:
        after = self.now + self.rng.expovariate(5)
        if process is not None:
            process.busy = after = max(after, process.busy)
        heapq.heappush(self._due, (after, next(self._order), what))

    # Time.

    def step(self, seconds: float) -> None:
        """Let so much time pass; everything that falls due happens, one thing at a time."""
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, what = heapq.heappop(self._due)
            what()
            self.act()
        self.now = end
        self.act()

    def settle(self) -> None:
        """Until nothing more happens, whatever time brings."""
        quiet = 0
        for _ in range(2000):
            before = len(self.events)
            self.step(0.5)
            quiet = quiet + 1 if len(self.events) == before and not self._due else 0
            if quiet > 60:
                return
        raise AssertionError("it never settles")

    # What must never happen.

    def check(self) -> None:
        state = self.state
        self.buried |= {self.current(w.worker) for w in state.workers.values() if w.phase in GONE}
        for worker in state.workers.values():
            recent = [t for t in worker.restarts if self.now - t <= POLICY.restart_window_s]
            assert len(recent) <= POLICY.max_restarts
            if state.rules.capacity is not None:
                held = worker.holds | worker.dropping
                assert len(held) <= state.rules.capacity, (worker, state.placement)
        for process in self.processes.values():
            known = state.workers.get(process.who.worker)
            is_aw = parse_worker_id(process.who.worker)[0] is Role.AW
            if not is_aw or not process.alive or known is None or known.phase is not Phase.SERVING:
                continue
            for expert, row in enumerate(process.table):
                for name in row:
                    peer = process.peers[name]
                    assert not peer.alive or expert in peer.holds, (process, expert, name)

    def check_settled(self) -> None:
        """What must be so once everything that could happen has."""
        state = self.state
        assert state.phase is RunPhase.RUNNING
        assert plan(state, self.now + 1e6, POLICY) == []
        members = [w for w in state.of(Role.EW) if w.member]
        assert {w.phase for w in state.workers.values() if w.member} <= {Phase.SERVING}
        serving = {w.worker: w.incarnation for w in state.of(Role.CS) if w.member}
        for aw in state.of(Role.AW):
            if aw.phase is Phase.SERVING:
                process = self.processes[self.current(aw.worker)]
                assert process.stores == serving == state.stores
        capacity = state.rules.capacity or state.placement.experts
        tight = len(members) * capacity < state.placement.experts
        holders = [w for w in state.of(Role.EW) if w.member or (w.retired and tight)]
        assert [w for w in state.of(Role.EW) if w.retired and w not in holders] == []
        assert set(state.placement.primaries) == {w.worker for w in holders}
        for worker in holders:
            assert not worker.orders
        room = len(holders) * capacity
        for worker in holders if room >= state.placement.experts else ():
            # Unless it is full of experts that only it has, and whose places are as full.
            alone = [e for e in worker.holds if state.table[e] == (worker.worker,)]
            stuck = len(worker.holds) == capacity and set(alone) - state.placement.of(worker.worker)
            assert worker.holds == state.placement.of(worker.worker) or stuck
        unserved = [e for e, row in enumerate(state.table) if not row]
        assert len(unserved) == max(0, state.placement.experts - room)
