"""Which AW is to be told of which checkpoint stores. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.ids import Incarnation, Role
from tarragon_hpc.orchestrator.actions import SendStores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tarragon_hpc.orchestrator.state import State, Worker


def send_stores(state: State) -> Iterator[SendStores]:
    """Every AW knows exactly the stores that serve, before its first table lets it serve."""
    serving = state.stores
    for worker in state.of(Role.AW):
        if worker.listens and not worker.awaited and worker.stores != serving:
            reason = _difference(state, worker.stores, serving)
            yield SendStores(worker.worker, worker.incarnation, serving, reason)


def forgotten(state: State, store: Worker) -> bool:
    """Whether no AW copies anything to a store any more."""
    return not any(aw.listens and store.worker in aw.stores for aw in state.of(Role.AW))


def _difference(state: State, told: Mapping[str, int], serving: Mapping[str, int]) -> str:
    """What an AW does not know yet, in words: `without cs1.1 (dead), with cs1.2`."""
    parts = []
    for name, incarnation in told.items():
        if serving.get(name) != incarnation:
            worker = state.workers.get(name)
            here = worker is not None and worker.incarnation == incarnation
            why = f" ({worker.reason or worker.phase})" if worker is not None and here else ""
            parts.append(f"without {Incarnation(name, incarnation)}{why}")
    parts += [f"with {Incarnation(*s)}" for s in serving.items() if told.get(s[0]) != s[1]]
    return ", ".join(parts)
