"""What a change of state means to the rest of the head (the gateway, the timeline). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator.holdings import Holdings
from tarragon_hpc.orchestrator.state import LEAVING, RunPhase, State, Worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


@dataclass(frozen=True, slots=True)
class _Attention:
    worker: str
    incarnation: int


class AttentionServing(_Attention):
    """An AW takes sequences from now on."""


class AttentionDraining(_Attention):
    """An AW is to leave; it takes no more sequences."""


@dataclass(frozen=True, slots=True)
class AttentionGone(_Attention):
    """An AW that served does not any more; it runs nothing."""

    reason: str


class AttentionSilent(_Attention):
    """An AW that serves is unresponsive; its sequences stand still, or nobody hears of them."""


class AttentionHeard(_Attention):
    """An AW that was silent is heard again."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether the service as a whole can admit a sequence, and if not, why."""

    serving: bool
    reason: str


Change: TypeAlias = (
    AttentionServing
    | AttentionDraining
    | AttentionGone
    | AttentionSilent
    | AttentionHeard
    | Availability
)


def availability(state: State) -> Availability:
    """Admit while some AW serves. Requests for experts that nobody holds wait or are masked there,
    so that only the loss of all EWs closes the door.
    """
    if state.phase is RunPhase.STARTING:
        return Availability(False, "the run is starting")
    if state.phase is not RunPhase.RUNNING:
        return Availability(False, f"the run is {state.phase}: {state.reason}")
    for role, name in ((Role.EW, "expert worker"), (Role.AW, "attention worker")):
        workers = state.of(role)
        if not any(w.member for w in workers):
            lost = "; ".join(f"{w.worker} {w.reason}" for w in workers if w.given_up)
            return Availability(False, f"no {name} is left" + (f" ({lost})" if lost else ""))
    if state.reviving:
        return Availability(False, f"the run is being continued: {state.waiting_for()}")
    if not any(w.serves and not w.draining for w in state.of(Role.AW)):
        coming = "; ".join(filter(None, map(trouble, state.of(Role.AW)))) or state.waiting_for()
        return Availability(False, f"no attention worker serves: {coming}")
    return Availability(True, "")


def diff(old: State, new: State) -> Iterator[Change]:
    """The changes from one state to the next, in the order they should take effect."""
    after = availability(new)
    if after != availability(old) and not after.serving:
        yield after
    for name, worker in new.workers.items():
        before = old.workers.get(name)
        if worker == before or worker.role is not Role.AW:
            continue
        served = before is not None and before.serves
        serves = worker.serves
        if before is not None and served and not serves:
            yield AttentionGone(name, before.incarnation, worker.reason)
        if before is not None and serves and worker.draining and not before.draining:
            yield AttentionDraining(name, worker.incarnation)
        if serves and not served:
            yield AttentionServing(name, worker.incarnation)
        was_silent = before is not None and served and not before.responsive
        if serves and worker.responsive == was_silent:
            kind = AttentionHeard if was_silent else AttentionSilent
            yield kind(name, worker.incarnation)
    if after != availability(old) and after.serving:
        yield after


def run_word(state: State) -> str:
    """The state of the run as `tarragon status` says it."""
    if state.phase is RunPhase.ENDED:
        return "failed" if state.failed else "ended"
    if state.phase is not RunPhase.RUNNING:
        return str(state.phase)
    if not availability(state).serving:
        return "unavailable"
    return "degraded" if any(troubles(state)) else "serving"


def run_reason(state: State) -> str:
    """Why the run is in the state that `run_word` says; empty if all is well."""
    if state.phase is RunPhase.STARTING:
        return f"waiting for {state.waiting_for()}"
    if state.phase is not RunPhase.RUNNING:
        return state.reason
    return availability(state).reason or "; ".join(troubles(state))


def troubles(state: State) -> Iterator[str]:
    """What is wrong with a running run, the worst first."""
    orphans = Holdings(state).orphans
    if orphans:
        meanwhile = _ORPHANED[state.rules.on_missing]
        yield f"no live worker holds {experts_in_words(orphans)}: {meanwhile}"
    if not state.stores and not all(w.retired for w in state.of(Role.CS)):
        yield "no checkpoint store serves: what a lost AW ran would be computed anew"
    yield from filter(None, map(trouble, state.workers.values()))


_ORPHANED = {
    "load": "they are being loaded, and requests for them wait",
    "mask": "they are masked until a replacement serves",
    "wait": "requests for them wait until a replacement serves",
}


def trouble(worker: Worker) -> str:
    """What is wrong with a worker of a running run; empty if nothing is."""
    if worker.retired:
        return ""
    if worker.given_up:
        return f"{worker.worker} {worker.reason}"
    if worker.awaited:
        return f"{worker.worker} has not come to the new head yet"
    if worker.phase in LEAVING:
        return f"{worker.worker} {worker.phase}: {worker.exit or worker.reason}"
    if waits := worker.waits_in_queue:
        instead = f" (in place of one that ended: {worker.before})" if worker.before else ""
        return f"{worker.worker} {waits}{instead}"
    if worker.before and not worker.live:
        return f"{worker.worker} {worker.phase} (in place of one that ended: {worker.before})"
    if worker.noticed:
        return f"{worker.worker} is to leave: {worker.reason}"
    return "" if worker.responsive else f"{worker.worker} unresponsive"


def experts_in_words(experts: Collection[int]) -> str:
    """`expert 3`, `experts 0-3,7`."""
    return f"expert{'s' if len(experts) > 1 else ''} {ranges(experts)}"


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,7` of [0, 1, 2, 3, 7]."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)
