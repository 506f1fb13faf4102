"""What workers tell the head about themselves and about each other, as events. Pure."""

from __future__ import annotations

from typing import TypeAlias, assert_never

from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.wire.to_head import (
    Cleared,
    Holding,
    Linked,
    Masked,
    Notice,
    Ready,
    Stopping,
    Suspect,
    TableApplied,
)

Told: TypeAlias = (
    Ready | TableApplied | Suspect | Cleared | Linked | Masked | Holding | Notice | Stopping
)


def event_of(message: Told, now: float) -> ev.AboutWorker:
    """The event; what a worker thinks of a peer is an event about that peer."""
    who = (message.worker, message.incarnation)
    by = str(Incarnation(*who))
    match message:
        case Ready():
            return ev.WorkerReady(now, *who, message.detail)
        case TableApplied():
            return ev.TableTaken(now, *who, message.epoch)
        case Notice():
            return ev.WorkerNoticed(now, *who, message.reason)
        case Stopping():
            return ev.WorkerLeaving(now, *who, message.reason)
        case Holding():
            return ev.HoldingReported(now, *who, message.experts, message.error)
        case Linked():
            peer = (message.peer, message.peer_incarnation)
            return ev.WorkerLinked(now, *who, *peer, message.kind, message.reason)
        case Suspect():
            peer = (message.peer, message.peer_incarnation)
            return ev.WorkerSuspected(now, *peer, by, message.reason)
        case Cleared():
            return ev.WorkerCleared(now, message.peer, message.peer_incarnation, by)
        case Masked():
            return ev.FailureMasked(
                now,
                message.peer,
                message.peer_incarnation,
                by,
                message.how,
                message.detected_ago_s,
                message.rerouted_ago_s,
                message.answered_ago_s,
                message.pairs,
            )
        case _:
            assert_never(message)
