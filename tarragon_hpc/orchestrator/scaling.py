"""More or fewer workers of a run that serves: as events, or why not. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.ids import Role, parse_worker_id, worker_id
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.changes import availability
from tarragon_hpc.orchestrator.state import RunPhase, State

if TYPE_CHECKING:
    from tarragon_hpc.orchestrator.state import Worker

_LIMITS = {Role.AW: (1, 1024), Role.EW: (1, 4096), Role.CS: (0, 64)}


def refuse(state: State, role: str, count: int) -> str | None:
    """Why a run cannot have `count` workers of a role; None if it can."""
    wanted = f"{role}={count}"
    if role not in list(Role):
        return f"{wanted}: unknown role {role!r}; aw, ew and cs can be scaled"
    least, most = _LIMITS[Role(role)]
    if not least <= count <= most:
        return f"{wanted}: must be from {least} to {most}"
    if state.phase is not RunPhase.RUNNING or not availability(state).serving:
        return f"{wanted}: only a run that serves can be scaled; {availability(state).reason}"
    if role == Role.AW:
        return None
    problem = _refuse_ews(state, count) if role == Role.EW else _refuse_stores(state, count)
    return None if problem is None else f"{wanted}: {problem}"


def _refuse_stores(state: State, count: int) -> str | None:
    replicas = state.rules.replicas
    if replicas == 0:
        return "the AWs were started without checkpoint stores (checkpoint.stores is 0)"
    if 0 < count < replicas:
        return f"checkpoint.replicas is {replicas}; at least cs={replicas}, or cs=0"
    return None


def _refuse_ews(state: State, count: int) -> str | None:
    experts, rules = state.placement.experts, state.rules
    if count > experts:
        return f"more EWs than the model's {experts} experts"
    if count <= rules.shadows:
        return (
            f"experts.shadows is {rules.shadows}, and shadows sit on other EWs; "
            f"at least ew={rules.shadows + 1}"
        )
    if rules.capacity is not None and count * rules.capacity < experts:
        needed = -(-experts // rules.capacity)
        return (
            f"experts.memory holds {rules.capacity} of the model's {experts} experts "
            f"per EW; at least ew={needed}"
        )
    return None


def scale(state: State, role: Role, count: int, now: float) -> list[ev.Event]:
    """What must happen so that the run will have `count` workers of a role.

    Workers that were given up do not count, and leave. New ones get the next numbers; the ones
    with the highest numbers are retired.
    """
    workers = sorted(state.of(role), key=_number)
    members = [w for w in workers if w.member]
    reason = f"scaled to {role}={count}"
    events: list[ev.Event] = [
        ev.WorkerRetired(now, w.worker, w.incarnation, reason)
        for w in (*members[count:], *(w for w in workers if w.given_up and not w.retired))
    ]
    first = _number(workers[-1]) + 1 if workers else 0
    for number in range(first, first + count - len(members)):
        name = worker_id(role, number)
        events.append(ev.WorkerAdded(now, name, state.removed.get(name, 0), reason))
    return events


def added(events: list[ev.Event]) -> list[str]:
    """The workers that are new in the events of `scale`."""
    return [event.worker for event in events if isinstance(event, ev.WorkerAdded)]


def _number(worker: Worker) -> int:
    return parse_worker_id(worker.worker)[1]
