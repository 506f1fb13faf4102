"""(state, now, policy) → what to do next, each with its reason. Pure.

The order of the clauses is the policy. Every action, once performed, is reported by events that
make its clause fall silent; planning twice on one state asks for the same things. To heal a
failure is one more clause here (a Start with the next incarnation, a Publish without the lost).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator.state import GONE, Phase, RunPhase, State, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits that decisions depend on, in seconds."""

    start_timeout_s: float
    exit_wait_s: float = 0.25
    """How long a lost worker's process may take to end by itself, with a status that explains."""
    exit_limit_s: float = 10.0
    """How long a fenced one's status may take; then the run goes on without it."""
    stop_grace_s: float = 5.0
    """From the order to leave to the first signal."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process for a worker's place."""

    worker: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Greet:
    """Answer a registration; `experts` and `shadows` are what an EW must load."""

    worker: str
    incarnation: int
    epoch: int
    experts: tuple[int, ...] | None
    shadows: tuple[int, ...] | None
    reason: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Make a new ERT known to the run."""

    epoch: int
    table: tuple[tuple[str, ...], ...]
    reason: str


@dataclass(frozen=True, slots=True)
class SendTable:
    """Send the current ERT to an AW."""

    worker: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fence:
    """Make sure that a lost incarnation does nothing any more."""

    worker: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell a worker to leave; signals follow after `grace_s` seconds."""

    worker: str
    incarnation: int
    grace_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The run cannot go on: stop it as failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class EndRun:
    """Nothing is left to wait for."""

    reason: str


Action: TypeAlias = Start | Greet | Publish | SendTable | Fence | Stop | GiveUp | EndRun


def plan(state: State, now: float, policy: Policy) -> list[Action]:
    """Everything that should be done now."""
    if state.phase is RunPhase.ENDED:
        return []
    if state.phase is RunPhase.STOPPING:
        return [*_fence(state, now, policy), *_stop(state, policy), *_end(state, now, policy)]
    if given_up := list(_give_up(state, now, policy)):
        return [*given_up]
    return [
        *_fence(state, now, policy),
        *_start(state),
        *_greet(state),
        *_publish(state),
        *_send_table(state),
    ]


def _give_up(state: State, now: float, policy: Policy) -> Iterator[GiveUp]:
    """A worker that dies during the start will die again: say so now, not at the timeout."""
    if state.phase is not RunPhase.STARTING:
        return
    for worker in state.workers.values():
        if _accounted_for(worker, now, policy):
            how = worker.exit or worker.reason
            yield GiveUp(f"{worker.worker} died during the start: {how}")
            return
    if now - state.since > policy.start_timeout_s:
        yield GiveUp(f"not serving after {policy.start_timeout_s:g} s: {state.waiting_for()}")


def _fence(state: State, now: float, policy: Policy) -> Iterator[Fence]:
    """A lost worker's process normally ends by itself; one that lingers could still write."""
    patience = {Phase.DEAD: policy.exit_wait_s, Phase.STOPPED: policy.stop_grace_s}
    for worker in state.workers.values():
        if worker.exit is not None or worker.fenced or worker.phase not in patience:
            continue
        if now - worker.since > patience[worker.phase]:
            yield Fence(worker.worker, worker.incarnation, worker.reason)


def _start(state: State) -> Iterator[Start]:
    for worker in state.workers.values():
        if worker.phase is Phase.PLANNED:
            yield Start(worker.worker, worker.incarnation + 1, "the run needs it")


def _greet(state: State) -> Iterator[Greet]:
    for worker in state.workers.values():
        if worker.phase is not Phase.REGISTERED:
            continue
        experts = shadows = None
        if worker.role is Role.EW:
            experts = state.placement.primaries[worker.worker]
            shadows = state.placement.shadows[worker.worker]
        yield Greet(
            worker.worker, worker.incarnation, state.epoch, experts, shadows, "it registered"
        )


def _publish(state: State) -> Iterator[Publish]:
    experts = state.of(Role.EW)
    if state.epoch == 0 and all(w.holds_experts for w in experts):
        table = state.placement.candidates()
        yield Publish(1, table, f"all {len(experts)} EWs are ready")


def _send_table(state: State) -> Iterator[SendTable]:
    for worker in state.of(Role.AW):
        if _listens(worker) and worker.table_sent < state.epoch:
            yield SendTable(worker.worker, worker.incarnation, f"epoch {state.epoch} is published")


def _listens(worker: Worker) -> bool:
    return worker.phase in (Phase.LOADING, Phase.READY, Phase.SERVING)


def _stop(state: State, policy: Policy) -> Iterator[Stop]:
    """A run that failed has nothing to lose; one that ends well lets its workers say goodbye."""
    grace = 0.0 if state.failed else policy.stop_grace_s
    for worker in state.workers.values():
        if worker.phase not in (Phase.PLANNED, Phase.STOPPING, *GONE):
            yield Stop(worker.worker, worker.incarnation, grace, state.reason)


def _end(state: State, now: float, policy: Policy) -> Iterator[EndRun]:
    workers = state.workers.values()
    if all(w.phase is Phase.PLANNED or _accounted_for(w, now, policy) for w in workers):
        yield EndRun(state.reason)


def _accounted_for(worker: Worker, now: float, policy: Policy) -> bool:
    """Gone, and either its exit status is known or it has been waited for long enough."""
    if worker.phase not in GONE:
        return False
    waited = worker.fenced and now - worker.since > policy.exit_limit_s
    return worker.exit is not None or waited
