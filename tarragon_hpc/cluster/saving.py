"""At a handover: the stores write down the KV of the requests that the next head goes on with."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from tarragon_hpc.ids import Role
from tarragon_hpc.wire.to_worker import Save

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.orchestrator.state import State
    from tarragon_hpc.wire.common import Message
    from tarragon_hpc.wire.to_head import Saved

# After its time is over a store still has to make the file durable.
_GRACE_S = 2.0
# How soon it is seen that a store has died over it.
_LOOK_S = 0.2


class Workers(Protocol):
    """See `orchestrator.service.Orchestrator`."""

    state: State

    def send(self, worker: str, message: Message) -> None: ...


class Saving:
    """Asks the stores and waits for their answers. record: the timeline's."""

    def __init__(self, workers: Callable[[], Workers], record: Callable[..., Any]) -> None:
        self._workers = workers
        self._record = record
        self._owing: set[tuple[str, int]] = set()
        self._answered = asyncio.Event()

    def __repr__(self) -> str:
        return f"Saving({len(self._owing)} stores owe an answer)"

    async def save(self, requests: list[str], attempt: int, seconds: float) -> None:
        """Returns when all stores that are there have answered, or have had their time.

        attempt: the last one of this head.
        """
        workers = self._workers()
        self._owing = _stores(workers.state) if requests else set()
        for worker, _ in self._owing:
            workers.send(worker, Save(requests, attempt, seconds))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + _GRACE_S):
                while self._owing & _stores(workers.state):
                    self._answered.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._answered.wait(), _LOOK_S)
        for worker, incarnation in sorted(self._owing):
            self._tell(worker, incarnation, problem="it did not answer")
        self._owing.clear()

    def on_saved(self, answer: Saved) -> None:
        """A store is done with it."""
        self._owing.discard((answer.worker, answer.incarnation))
        detail: dict[str, Any] = {"problem": answer.problem} if answer.problem else {}
        self._tell(
            answer.worker,
            answer.incarnation,
            requests=answer.requests,
            tokens=answer.tokens,
            nbytes=answer.nbytes,
            **detail,
        )
        self._answered.set()

    def _tell(self, worker: str, incarnation: int, **detail: Any) -> None:
        self._record("kv saved", worker=worker, incarnation=incarnation, **detail)


def _stores(state: State) -> set[tuple[str, int]]:
    """Those that can answer, given notice or not."""
    stores = state.of(Role.CS)
    return {(w.worker, w.incarnation) for w in stores if w.serves and w.responsive}
