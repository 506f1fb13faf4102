"""When a run serves nobody and nothing is on its way to change that, it ends. Pure.

Who is queued may come tomorrow; until then whatever nodes the run holds stand idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator.actions import GiveUp
from tarragon_hpc.orchestrator.changes import experts_in_words
from tarragon_hpc.orchestrator.state import Phase, RunPhase, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarragon_hpc.orchestrator.policy import Policy
    from tarragon_hpc.orchestrator.state import Worker


def down(state: State) -> str:
    """Why a running run serves nobody; empty if it serves."""
    if state.phase is not RunPhase.RUNNING:
        return ""
    if not any(w.phase is Phase.SERVING for w in state.of(Role.AW)):
        return "no attention worker serves"
    if state.rules.on_missing == "mask":
        live = any(w.serves_experts for w in state.workers.values())
        return "" if live else "no expert worker serves"
    missing = _missing(state)
    return f"no live worker holds {experts_in_words(missing)}" if missing else ""


def give_up(state: State, now: float, policy: Policy) -> Iterator[GiveUp]:
    """Stop the run as failed if it has been down for too long and nothing is on its way."""
    if policy.hopeless_s is None or state.down_since is None:
        return
    took = now - state.down_since
    if took <= policy.hopeless_s or not (reason := down(state)):
        return
    needed = Role.AW if not any(w.phase is Phase.SERVING for w in state.of(Role.AW)) else Role.EW
    missing = _missing(state)
    if any(_coming(worker, missing) for worker in state.of(needed)):
        return
    waits = "; ".join(f"{w.worker} {w.waits_in_queue or w.reason}" for w in state.of(needed))
    yield GiveUp(f"{reason} for {took:.0f} s and nothing is on its way ({waits})")


def _missing(state: State) -> frozenset[int]:
    """Experts that no live EW holds."""
    held = (w.holds for w in state.workers.values() if w.serves_experts)
    return frozenset(range(state.placement.experts)).difference(*held)


def _coming(worker: Worker, missing: frozenset[int]) -> bool:
    """Whether a worker that does not serve now will soon, or ends as given up."""
    if not worker.member or worker.queued:
        return False
    return not worker.live or worker.role is Role.AW or bool(worker.loading & missing)
