"""(state, now, policy) → what to do next, each with its reason. Pure.

The order of the clauses is the policy: a failure is fenced, routed around, replaced, and only then
are copies restored. Every action, once performed, is reported by events that make its clause fall
silent; planning twice on one state asks for the same things.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.ids import Incarnation, Role
from tarragon_hpc.orchestrator import copies
from tarragon_hpc.orchestrator.actions import (
    Abandon,
    Action,
    Condemn,
    EndRun,
    Fence,
    GiveUp,
    Greet,
    Publish,
    Rearrange,
    SendTable,
    Start,
    Stop,
)
from tarragon_hpc.orchestrator.events import SILENCE, TIME
from tarragon_hpc.orchestrator.holdings import Holdings
from tarragon_hpc.orchestrator.hopeless import give_up
from tarragon_hpc.orchestrator.notices import hand_over
from tarragon_hpc.orchestrator.rearrange import rearrange
from tarragon_hpc.orchestrator.restarts import replace
from tarragon_hpc.orchestrator.retire import accounted_for, remove, retire
from tarragon_hpc.orchestrator.state import GONE, Phase, RunPhase, State, Worker
from tarragon_hpc.orchestrator.stores import send_stores
from tarragon_hpc.orchestrator.tables import difference, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tarragon_hpc.orchestrator.policy import Policy

_ARRIVING = frozenset({Phase.STARTING, Phase.REGISTERED, Phase.LOADING})


def plan(state: State, now: float, policy: Policy) -> list[Action]:
    """Everything that should be done now."""
    if state.phase is RunPhase.ENDED:
        return []
    lapsed = list(_lapsed(state, now, policy))
    if lapsed:  # nothing else may be decided as if these were still there
        return [*lapsed]
    if state.phase is RunPhase.STOPPING:
        return [*_fence(state, now, policy), *_stop(state, policy), *_end(state, now, policy)]
    if state.epoch == 0 or state.phase is RunPhase.STARTING:
        return _begin(state, now, policy)
    if state.reviving:
        return _revive(state, now, policy)
    return _heal(state, now, policy)


def _begin(state: State, now: float, policy: Policy) -> list[Action]:
    """A run that starts: all of it, or nothing. If the head has changed meanwhile, some may have
    died with it, which proves nothing: then the dead are replaced as in a run that serves.
    """
    actions: list[Action] = [*hand_over(state, now, policy)]
    actions = actions or [*_give_up(state, now, policy)]
    if not actions and state.changed:
        first = state.epoch == 0 or state.reviving
        return _revive(state, now, policy) if first else _heal(state, now, policy)
    if not actions:
        actions += [*_fence(state, now, policy), *_start(state), *_greet(state)]
        actions += [*send_stores(state), *_route(state)]
    return actions


def _revive(state: State, now: float, policy: Policy) -> list[Action]:
    """A run that goes on elsewhere: its next table waits for all EWs, as the first one did, but who
    dies meanwhile is replaced.
    """
    actions: list[Action] = [*_condemn(state, now, policy)]
    if actions:
        return actions
    holdings = Holdings(state)
    actions += [*_fence(state, now, policy), *send_stores(state)]
    actions += [*_start(state), *_replace(state, now, policy)]
    actions += [*_greet(state), *_rearrange(state, holdings)]
    experts = [w for w in state.of(Role.EW) if w.member]
    if all(w.live for w in (*experts, *(w for w in state.of(Role.CS) if w.member))):
        reason = f"all {len(experts)} EWs are ready"
        actions.append(Publish(state.epoch + 1, table(holdings), reason))
    return actions


def _heal(state: State, now: float, policy: Policy) -> list[Action]:
    """A run that serves: keep it so."""
    actions: list[Action] = [*hand_over(state, now, policy), *give_up(state, now, policy)]
    if actions:
        return actions
    actions += _condemn(state, now, policy)
    if actions:  # nothing else may be decided as if these were still there
        return actions
    holdings = Holdings(state, now - policy.load_timeout_s)
    routes: list[Action] = [*_publish(state, holdings), *_send_table(state)]
    actions += [*_fence(state, now, policy), *send_stores(state), *routes]
    actions += copies.loads(holdings, now, policy)
    if not routes:  # first everybody routes around the dead
        actions += [*_start(state), *_replace(state, now, policy)]
        actions += [*copies.unloads(holdings, now, policy), *retire(holdings, now, policy)]
        actions += remove(state, now, policy)
    actions += [*_greet(state), *_rearrange(state, holdings)]
    return actions


def _give_up(state: State, now: float, policy: Policy) -> Iterator[GiveUp]:
    """A worker that dies during the start will die again: say so now, not at the timeout."""
    if state.phase is not RunPhase.STARTING:
        return
    workers = state.workers.values()
    for worker in () if state.changed else workers:
        if accounted_for(worker, now, policy):
            how = worker.exit or worker.reason
            yield GiveUp(f"{worker.worker} died during the start: {how}")
            return
    if any(w.waits_in_queue for w in workers):
        return
    began = max((w.started for w in workers if w.job), default=state.since)
    if now - began > policy.start_timeout_s:
        late = f"not serving after {policy.start_timeout_s:g} s: {state.waiting_for()}"
        yield GiveUp(late, _absent(workers))


def _condemn(state: State, now: float, policy: Policy) -> Iterator[Condemn]:
    """Who has been away for too long, in whichever way, is not waited for any longer."""
    for worker in state.workers.values():
        who = (worker.worker, worker.incarnation)
        if worker.live and not worker.responsive:
            if now - worker.silent_at > policy.stopped_grace_s:
                yield Condemn(*who, SILENCE, f"unresponsive for {policy.stopped_grace_s:g} s")
        elif worker.awaited or worker.waits_in_queue:
            continue
        elif worker.phase in _ARRIVING and now - worker.started > policy.start_timeout_s:
            late = f"not ready after {policy.start_timeout_s:g} s"
            yield Condemn(*who, TIME, late, _absent([worker]))
        elif worker.phase is Phase.STOPPING and now - worker.since > policy.exit_limit_s:
            yield Condemn(*who, TIME, f"leaving for more than {policy.exit_limit_s:g} s")


def _lapsed(state: State, now: float, policy: Policy) -> Iterator[Condemn]:
    """Who has not come to the new head in time is not waited for any longer; who looks dead to its
    peers, for less time.
    """
    limit_s = policy.head_lease_s
    if state.phase is RunPhase.STOPPING:
        limit_s = min(limit_s, policy.stop_grace_s + policy.exit_limit_s)
    for worker in state.workers.values():
        if not worker.awaited or worker.waits_in_queue:
            continue
        patience = min(limit_s, policy.stopped_grace_s) if worker.suspected else limit_s
        if now - max(state.changed, state.since) > patience:
            reason = f"did not come to head {state.head} within {patience:g} s"
            yield Condemn(worker.worker, worker.incarnation, TIME, reason)


def _absent(workers: Iterable[Worker]) -> tuple[Incarnation, ...]:
    """Which of these have been started and never registered."""
    absent = (w for w in workers if w.phase is Phase.STARTING)
    return tuple(Incarnation(w.worker, w.incarnation) for w in absent)


def _fence(state: State, now: float, policy: Policy) -> Iterator[Fence]:
    """A lost worker's process normally ends by itself; one that lingers could still write."""
    patience = {Phase.DEAD: policy.exit_wait_s, Phase.STOPPED: policy.stop_grace_s}
    for worker in state.workers.values():
        if worker.exit is not None or worker.fenced or worker.phase not in patience:
            continue
        if worker.condemned or now - worker.since > patience[worker.phase]:
            yield Fence(worker.worker, worker.incarnation, worker.reason)


def _start(state: State) -> Iterator[Start]:
    for worker in state.workers.values():
        if worker.phase is Phase.PLANNED and not worker.retired:
            yield Start(worker.worker, worker.next, "the run needs it")


def _replace(state: State, now: float, policy: Policy) -> Iterator[Start | Abandon]:
    """While the run drains, only what the last requests need."""
    needed = {Role.EW}
    if not any(w.phase is Phase.SERVING for w in state.of(Role.AW)):
        needed.add(Role.AW)
    for worker in state.workers.values():
        if state.phase is not RunPhase.DRAINING or worker.role in needed:
            action = replace(worker, state, now, policy)
            if action is not None:
                yield action


def _greet(state: State) -> Iterator[Greet]:
    for worker in state.workers.values():
        if worker.phase is not Phase.REGISTERED or worker.retired or worker.awaited:
            continue
        experts = shadows = None
        if worker.role is Role.EW:
            experts = state.placement.primaries.get(worker.worker, ())
            shadows = state.placement.shadows.get(worker.worker, ())
        yield Greet(
            worker.worker, worker.incarnation, state.epoch, experts, shadows, "it registered"
        )


def _route(state: State) -> Iterator[Publish | SendTable]:
    """The first table waits for all EWs, and for the stores, which AWs know before they serve."""
    experts = state.of(Role.EW)
    none_yet = state.epoch == 0 or state.reviving
    if none_yet and all(w.live for w in (*experts, *state.of(Role.CS))):
        reason = f"all {len(experts)} EWs are ready"
        yield Publish(state.epoch + 1, table(Holdings(state)), reason)
    yield from _send_table(state)


def _publish(state: State, holdings: Holdings) -> Iterator[Publish]:
    wanted = table(holdings)
    if wanted != state.table:
        yield Publish(state.epoch + 1, wanted, difference(state, wanted))


def _send_table(state: State) -> Iterator[SendTable]:
    for worker in state.of(Role.AW):
        if worker.listens and not worker.awaited and worker.table_sent < state.epoch:
            yield SendTable(worker.worker, worker.incarnation, f"epoch {state.epoch} is published")


def _rearrange(state: State, holdings: Holdings) -> Iterator[Rearrange]:
    """Who is given up, added or retired changes who should hold what."""
    holders = _holders(state)
    names = [w.worker for w in holders]
    if state.phase is not RunPhase.RUNNING or set(names) == set(state.placement.primaries):
        return
    gone = [w for w in state.placement.primaries if w not in names]
    come = [w for w in names if w not in state.placement.primaries]
    reasons = [f"{', '.join(come)} added"] * bool(come) + [f"without {', '.join(gone)}"] * bool(
        gone
    )
    placement = rearrange(
        state.placement,
        names,
        state.rules,
        holds={name: worker.holds for name, worker in holdings.live.items()},
        nodes={w.worker: w.place for w in holders},
    )
    yield Rearrange(placement, "; ".join(reasons))


def _holders(state: State) -> list[Worker]:
    """The EWs that are to hold the experts; one that is retired only as long as it must, since
    the memory of the others is too small by now.
    """
    members = [w for w in state.of(Role.EW) if w.member]
    capacity = state.rules.capacity
    if capacity is None or len(members) * capacity >= state.placement.experts:
        return members
    return [w for w in state.of(Role.EW) if w.member or (w.retired and w.live)]


def _stop(state: State, policy: Policy) -> Iterator[Stop]:
    """A run that failed has nothing to lose; one that ends well lets its workers say goodbye."""
    grace = 0.0 if state.failed else policy.stop_grace_s
    for worker in state.workers.values():
        if worker.phase not in (Phase.PLANNED, Phase.STOPPING, *GONE):
            yield Stop(worker.worker, worker.incarnation, grace, state.reason)


def _end(state: State, now: float, policy: Policy) -> Iterator[EndRun]:
    workers = state.workers.values()
    if all(w.phase is Phase.PLANNED or accounted_for(w, now, policy) for w in workers):
        yield EndRun(state.reason)
