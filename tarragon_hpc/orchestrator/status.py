"""The run as `tarragon status --json` prints it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tarragon_hpc.ids import Incarnation, Role
from tarragon_hpc.orchestrator.changes import run_reason, run_word
from tarragon_hpc.orchestrator.coverage import coverage_of
from tarragon_hpc.orchestrator.protection import protection_of
from tarragon_hpc.orchestrator.state import LEAVING, State, Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOBODY: Mapping[str, float] = {}


def describe(
    state: State,
    *,
    endpoint: str | None,
    now: float | None = None,
    heard: Mapping[Incarnation, float] | None = None,
    stats: Mapping[Incarnation, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Plain data, ready for JSON. Without `now` (from a journal) nothing about time is said."""
    status: dict[str, Any] = {
        "run": state.run,
        "state": run_word(state),
        "reason": run_reason(state),
        "endpoint": endpoint,
        "head": state.head,
        "epoch": state.epoch,
        "stale_events": state.stale,
        "coverage": coverage_of(state).plain(),
        "checkpoint": protection_of(state, stats or {}, now).plain(),
        "workers": [
            _worker(state, w, now, heard or {}, stats or {}) for w in state.workers.values()
        ],
    }
    if state.handover:
        status["handover"] = True
    if now is not None:
        status["in_state_s"] = round(now - state.since, 3)
    return status


def _worker(
    state: State,
    worker: Worker,
    now: float | None,
    heard: Mapping[Incarnation, float],
    stats: Mapping[Incarnation, Mapping[str, float]],
) -> dict[str, Any]:
    who = Incarnation(worker.worker, worker.incarnation)
    entry: dict[str, Any] = {
        "id": worker.worker,
        "role": worker.role.value,
        "state": worker_word(worker),
        "incarnation": worker.incarnation,
        "pid": worker.pid,
        "host": worker.host,
        "node": worker.place,
        "experts": [],
    }
    if worker.job:
        entry["job"] = worker.job
    if worker.waits_in_queue:
        entry["pending_reason"] = worker.queued
        entry["expected_start"] = worker.expected_start
    if worker.role is Role.EW:
        entry["experts"] = list(state.placement.primaries.get(worker.worker, ()))
        entry["shadows"] = list(state.placement.shadows.get(worker.worker, ()))
        entry["holds"] = sorted(worker.holds)
        entry["loading"] = sorted(worker.loading)
    if worker.role is Role.AW:
        entry["stores"] = [str(Incarnation(*store)) for store in worker.stores.items()]
        links = state.links(worker)
        entry["links"] = {peer: link.kind for peer, link in sorted(links.items())}
        if reasons := {peer: link.reason for peer, link in sorted(links.items()) if link.reason}:
            entry["link_reasons"] = reasons
    if worker.step:
        entry["step"] = worker.step
    entry["restarts"] = len(worker.restarts)
    if worker.before:
        entry["before"] = worker.before
    if worker.reason or worker.exit:
        entry["reason"] = worker.reason
        entry["exit"] = worker.exit
    if now is not None and who in heard and worker.phase not in LEAVING:
        entry["heard_s_ago"] = round(now - heard[who], 3)
    if now is not None:
        entry["in_state_s"] = round(now - worker.since, 3)
    entry["detail"] = dict(worker.detail)
    entry["stats"] = dict(stats.get(who, _NOBODY))
    return entry


def worker_word(worker: Worker) -> str:
    """The state of a worker in one word."""
    if worker.awaited:
        return "awaited"
    if worker.retired and worker.phase not in LEAVING:
        return "retiring"
    if worker.noticed and worker.phase not in LEAVING:
        return "called away"
    if not worker.responsive and worker.phase not in LEAVING:
        return "unresponsive"
    if worker.waits_in_queue:
        return "queued"
    return str(worker.phase)
