"""What has happened once an action was performed, as events. Pure.

`Start` is not here: only who performs it knows whether there is a process. Nor is `HandOver`, which
the head carries out by draining.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from tarragon_hpc.orchestrator import actions as ac
from tarragon_hpc.orchestrator import events as ev

if TYPE_CHECKING:
    from tarragon_hpc.orchestrator.state import State


def outcome(action: ac.Action, state: State, now: float) -> ev.Event | None:
    """The event that makes the clause of `plan` that asked for this fall silent."""
    match action:
        case ac.Start() | ac.HandOver():
            return None
        case ac.Publish():
            return ev.TablePublished(now, action.epoch, [list(row) for row in action.table])
        case ac.Rearrange():
            primaries, shadows = action.placement.primaries, action.placement.shadows
            return ev.PlacementChanged(
                now,
                {worker: list(held) for worker, held in primaries.items()},
                {worker: list(held) for worker, held in shadows.items()},
                action.reason,
            )
        case ac.GiveUp():
            return ev.StopBegan(now, action.reason, failed=True)
        case ac.EndRun():
            return ev.RunEnded(now)
        case _:
            return _about_worker(action, state.epoch, now)


_AboutWorker = (
    ac.Greet
    | ac.SendTable
    | ac.SendStores
    | ac.Load
    | ac.Unload
    | ac.Condemn
    | ac.Fence
    | ac.Abandon
    | ac.Drain
    | ac.Stop
    | ac.Remove
)


def _about_worker(action: _AboutWorker, epoch: int, now: float) -> ev.AboutWorker:
    who = (action.worker, action.incarnation)
    match action:
        case ac.Greet():
            told = sorted((*(action.experts or ()), *(action.shadows or ())))
            return ev.WorkerWelcomed(now, *who, told)
        case ac.SendTable():
            return ev.TableSent(now, *who, epoch)
        case ac.SendStores():
            return ev.StoresSent(now, *who, dict(action.stores))
        case ac.Load():
            return ev.LoadAsked(now, *who, list(action.experts), action.reason)
        case ac.Unload():
            return ev.UnloadAsked(now, *who, list(action.experts), action.reason)
        case ac.Condemn():
            return ev.WorkerLost(now, *who, action.how, action.reason)
        case ac.Fence():
            return ev.WorkerFenced(now, *who)
        case ac.Abandon():
            return ev.WorkerGivenUp(now, *who, action.reason)
        case ac.Drain():
            return ev.WorkerDrained(now, *who, action.reason)
        case ac.Stop():
            return ev.WorkerStopAsked(now, *who, action.reason)
        case ac.Remove():
            return ev.WorkerRemoved(now, *who)
        case _:
            assert_never(action)
