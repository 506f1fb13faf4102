"""Carries out what `plan` decides. The only part of the orchestrator that acts.

    something happens → record(event): state = apply(state, event), observers are told
                      → the journal is on disk → plan(state) → actions → more events → …

Everything but the journal's writes runs in one event loop. Observers (gateway, timeline) learn of
an event before it is on disk, since they only report; processes and workers after.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.ids import Incarnation, Role
from tarragon_hpc.observe.log import ChangeLogger
from tarragon_hpc.orchestrator import actions as ac
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator import scaling
from tarragon_hpc.orchestrator.apply import apply, begin
from tarragon_hpc.orchestrator.detector import describe_exit, verdicts, was_paused
from tarragon_hpc.orchestrator.outcomes import outcome
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.reports import Told, event_of
from tarragon_hpc.orchestrator.state import RunPhase, State
from tarragon_hpc.orchestrator.takeover import expects
from tarragon_hpc.wire import to_worker
from tarragon_hpc.wire.common import Message, Peer
from tarragon_hpc.wire.to_head import Heartbeat, Register

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tarragon_hpc.orchestrator.journal import Journal
    from tarragon_hpc.orchestrator.policy import Policy

# From the first sign of a process's end until what it sent last has been read: a farewell that
# is still in the socket tells leaving from dying.
_ENDING_WAIT_S = 0.001
_EXIT_WAIT_S = 0.02
# From the report that a worker elsewhere has ended until it counts as a lie.
_ZOMBIE_WAIT_S = 0.2

log = logging.getLogger(__name__)

Report = Heartbeat | Told
"""What workers tell the orchestrator (the rest of ToHead is for the gateway or from clients)."""


class Launcher(Protocol):
    """Starts and ends the processes of workers, wherever they run. No method waits."""

    def start(self, who: Incarnation) -> int | None:
        """Start a process, return its pid if that is known yet. Raises ClusterError."""

    def stop(self, who: Incarnation, grace_s: float) -> None:
        """End a process that was asked to leave: after `grace_s` seconds by force."""

    def kill(self, who: Incarnation) -> None:
        """End a process at once; one that is gone is ignored."""


class Link(Protocol):
    """The head's end of a worker's control connection."""

    def send(self, *messages: Message) -> None:
        """Queue messages; never waits."""


class Orchestrator:
    """Owns the state of a run, and brings the world in line with it."""

    def __init__(
        self,
        begun: ev.RunCreated | State,
        *,
        journal: Journal,
        launcher: Launcher,
        policy: Policy,
        silence_bound_s: float,
        observe: Callable[[State, State, ev.Event], None],
        hand_over: Callable[[str], None] = lambda reason: None,
        prepare: Callable[[list[str], list[str]], str | None] = lambda workers, beside: None,
        explain: Callable[[tuple[Incarnation, ...]], str] = lambda absent: "",
    ) -> None:
        """`begun`: a run that was just decided on, or one that another head had before, as it was
        taken over (that is in the journal already). `hand_over` has the head end, for another one
        to go on. `prepare` makes places for more workers beside those that stay, or says why not.
        `explain` says what is known of workers that were started and never registered; it is called
        in a thread and may read files.
        """
        self.state = begun if isinstance(begun, State) else begin(begun)
        self.heard: dict[Incarnation, float] = {}
        self.stats: dict[Incarnation, Mapping[str, float]] = {}
        self._journal = journal
        self._launcher = launcher
        self._policy = policy
        self._bound_s = silence_bound_s
        self._observe = observe
        self._hand_over = hand_over
        self._prepare = prepare
        self._explain = explain
        self._links: dict[Incarnation, Link] = {}
        self._exits: dict[Incarnation, tuple[str, asyncio.TimerHandle]] = {}
        self._unwritten: list[ev.Event] = [] if isinstance(begun, State) else [begun]
        self._wake = asyncio.Event()
        self._looked = time.monotonic()
        self._reasons = ChangeLogger(log)

    def __repr__(self) -> str:
        known = self.state.workers.values()
        workers = ", ".join(f"{w.worker}.{w.incarnation} {w.phase}" for w in known)
        return f"Orchestrator({self.state.phase}, epoch={self.state.epoch}, {workers})"

    # What happens.

    def record(self, event: ev.Event) -> None:
        """Something happened; whatever follows from it is done by `run`."""
        before, self.state = self.state, apply(self.state, event)
        self._unwritten.append(event)
        self._wake.set()
        self._observe(before, self.state, event)

    def admit(self, link: Link, register: Register) -> Incarnation | None:
        """A worker connected. None: it is not one that this run waits for; it must be fenced."""
        who = Incarnation(register.worker, register.incarnation)
        now = time.monotonic()
        standing = register.standing
        worker = self.state.workers.get(who.worker)
        expected = expects(worker, who.number, anew=standing is None)
        if expected:
            self._links[who] = link
            self.heard[who] = now
        known = (now, *who, register.pid, register.host, dict(register.address))
        slurm = (register.step, register.node)
        if standing is None:
            self.record(ev.WorkerRegistered(*known, *slurm))
        else:
            self.record(ev.WorkerReturned(*known, standing, *slurm))
        return who if expected else None

    def receive(self, message: Report) -> None:
        """A registered worker reports."""
        if isinstance(message, Heartbeat):
            self.stats[Incarnation(message.worker, message.incarnation)] = message.stats
        else:
            self.record(event_of(message, time.monotonic()))

    def hear(self, who: Incarnation) -> None:
        """Any message from an admitted worker is a sign of life."""
        self.heard[who] = time.monotonic()

    def lost(self, who: Incarnation, reason: str) -> None:
        """An admitted worker's connection ended; what it sent has been read."""
        self._links.pop(who, None)
        if who in self._exits:
            self._record_exit(who)
        self.record(ev.WorkerLost(time.monotonic(), *who, "connection", reason))
        self.heard.pop(who, None)
        self.stats.pop(who, None)

    def ending(self, who: Incarnation) -> None:
        """A worker's process begins to end; its exit status and connection follow later."""
        asyncio.get_running_loop().call_later(_ENDING_WAIT_S, self._record_ending, who)

    def _record_ending(self, who: Incarnation) -> None:
        self.record(ev.WorkerLost(time.monotonic(), *who, "process", "its process ended"))

    def exited(self, who: Incarnation, returncode: int) -> None:
        """A worker's process has ended. Whoever else holds its connection open delays nothing."""
        wait_s = _EXIT_WAIT_S if who in self._links else 0.0
        timer = asyncio.get_running_loop().call_later(wait_s, self._record_exit, who)
        self._exits[who] = (describe_exit(returncode), timer)

    def reported_gone(self, who: Incarnation, cause: str) -> None:
        """A worker has ended, says somebody who may be wrong: it lives if its connection stands."""
        if who not in self._links:
            self.record(ev.WorkerExited(time.monotonic(), *who, cause))
            return
        timer = asyncio.get_running_loop().call_later(_ZOMBIE_WAIT_S, self._condemn_zombie, who)
        self._exits[who] = (cause, timer)

    def queued(self, who: Incarnation, job: str, reason: str, expected_start: str) -> None:
        """A worker waits, for its own job or for a place; an empty reason: it runs now."""
        self.record(ev.WorkerQueued(time.monotonic(), *who, job, reason, expected_start))

    def _condemn_zombie(self, who: Incarnation) -> None:
        """Nobody watches over it any more, so it must not serve. Its end is recorded with that of
        its connection.
        """
        reason = f"{self._exits[who][0]}, and yet it runs"
        self.record(ev.WorkerLost(time.monotonic(), *who, ev.ZOMBIE, reason))

    def _record_exit(self, who: Incarnation) -> None:
        text, timer = self._exits.pop(who)
        timer.cancel()
        self.record(ev.WorkerExited(time.monotonic(), *who, text))

    def drain(self, reason: str, drain_s: float, *, handover: bool = False) -> None:
        """Admit nothing new from now on."""
        self.record(ev.DrainBegan(time.monotonic(), reason, drain_s, handover))

    def stop(self, reason: str, *, handover: bool = False) -> None:
        """All workers leave now. The run ends with that, unless it is handed over."""
        self.record(ev.StopBegan(time.monotonic(), reason, failed=False, handover=handover))

    def scale(self, role: str, count: int) -> str | None:
        """Have so many workers of a role; why not, or None if the change is under way."""
        if (problem := scaling.refuse(self.state, role, count)) is not None:
            return problem
        events = scaling.scale(self.state, Role(role), count, time.monotonic())
        leaving = {event.worker for event in events if isinstance(event, ev.WorkerRetired)}
        staying = [w.worker for w in self.state.workers.values() if w.member]
        staying = [name for name in staying if name not in leaving]
        if (problem := self._prepare(scaling.added(events), staying)) is not None:
            return f"{role}={count}: {problem}"
        for event in events:
            self.record(event)
        return None

    def step_of(self, who: Incarnation) -> str:
        """The Slurm step of a worker that has registered, else nothing."""
        worker = self.state.workers.get(who.worker)
        return worker.step if worker is not None and worker.incarnation == who.number else ""

    def send(self, worker: str, message: Message) -> None:
        """Queue a message for the current incarnation of a worker; dropped if nobody is there."""
        known = self.state.workers.get(worker)
        link = self._links.get(Incarnation(worker, known.incarnation)) if known else None
        if link is not None:
            link.send(message)

    # What is done about it.

    async def run(self) -> State:
        """Act until the run has ended; returns the last state. Raises ClusterError if the journal
        cannot be written: a head that cannot remember must not decide.
        """
        while True:
            await self._remember()
            if self.state.phase is RunPhase.ENDED:
                return self.state
            self._look()
            for action in plan(self.state, time.monotonic(), self._policy):
                self._perform(await self._explained(action))
            if not self._unwritten:
                await self._rest()

    async def _explained(self, action: ac.Action) -> ac.Action:
        """With what can be found out about workers that never came."""
        if not isinstance(action, ac.GiveUp | ac.Condemn) or not action.absent:
            return action
        words = await asyncio.to_thread(self._explain, action.absent)
        return replace(action, reason=f"{action.reason}; {words}") if words else action

    async def _remember(self) -> None:
        while self._unwritten:
            batch, self._unwritten = self._unwritten, []
            await asyncio.to_thread(self._journal.append, batch)

    async def _rest(self) -> None:
        """Until something happens, or long enough to look at the clock again."""
        try:
            async with asyncio.timeout(self._bound_s / 4):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _look(self) -> None:
        now = time.monotonic()
        if was_paused(self._looked, now, self._bound_s):
            self.heard = dict.fromkeys(self.heard, now)
        self._looked = now
        for verdict in verdicts(self.state, self.heard, now, self._bound_s):
            self.record(verdict)

    def _perform(self, action: ac.Action) -> None:
        subject = getattr(action, "worker", "run")
        self._reasons.log_if_changed(subject, f"{type(action).__name__}: {action.reason}")
        match action:
            case ac.Start():
                self._start(Incarnation(action.worker, action.incarnation))
            case ac.Greet():
                welcome = to_worker.Welcome(
                    action.epoch, _listed(action.experts), _listed(action.shadows)
                )
                self.send(action.worker, welcome)
            case ac.SendTable():
                self.send(action.worker, self._table())
            case ac.SendStores():
                self.send(action.worker, to_worker.Stores(self._peers(action.stores)))
            case ac.Load():
                self.send(action.worker, to_worker.Load(list(action.experts)))
            case ac.Unload():
                self.send(action.worker, to_worker.Unload(list(action.experts)))
            case ac.Fence():
                self.send(action.worker, to_worker.Fence(action.reason))
                self._launcher.kill(Incarnation(action.worker, action.incarnation))
            case ac.Stop():
                self.send(action.worker, to_worker.Shutdown(action.reason))
                who = Incarnation(action.worker, action.incarnation)
                self._launcher.stop(who, action.grace_s)
            case ac.HandOver():
                self._hand_over(action.reason)
            case _:
                pass  # nothing but what `outcome` says
        event = outcome(action, self.state, time.monotonic())
        if event is not None:
            self.record(event)
        if isinstance(action, ac.Drain):
            # After the gateway has learnt of it: it must be the last that the AW is sent.
            self.send(action.worker, to_worker.Drain(action.reason))

    def _start(self, who: Incarnation) -> None:
        try:
            pid = self._launcher.start(who)
        except ClusterError as error:
            now = time.monotonic()
            self.record(ev.WorkerStarted(now, *who, None))
            self.record(ev.WorkerExited(now, *who, str(error)))
        else:
            self.record(ev.WorkerStarted(time.monotonic(), *who, pid))

    def _table(self) -> to_worker.Table:
        named = self.state.named
        peers = self._peers([w.worker for w in self.state.of(Role.EW) if w.worker in named])
        table = [list(holders) for holders in self.state.table]
        return to_worker.Table(self.state.epoch, table, peers)

    def _peers(self, names: Iterable[str]) -> list[Peer]:
        workers = (self.state.workers[name] for name in names)
        return [Peer(w.worker, w.incarnation, dict(w.address)) for w in workers]


def _listed(experts: tuple[int, ...] | None) -> list[int] | None:
    return None if experts is None else list(experts)
