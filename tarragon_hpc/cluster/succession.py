"""The steps of `assemble` that only a run with more than one head needs."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tarragon_hpc.cluster.inheritance import Inheritance, inherit
from tarragon_hpc.cluster.rendezvous import claim_head
from tarragon_hpc.errors import ClusterError, ConfigError, TarragonError, UserError
from tarragon_hpc.gateway.server import listen

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from tarragon_hpc.cluster.places import Places
    from tarragon_hpc.config.schema import GatewayConfig
    from tarragon_hpc.ids import Incarnation
    from tarragon_hpc.orchestrator.service import Launcher
    from tarragon_hpc.orchestrator.state import State

# A head that was superseded finds out, and gives its port back, within a second.
_PORT_WAIT_S = 3.0
_PORT_PAUSE_S = 0.2

log = logging.getLogger(__name__)


@runtime_checkable
class Adopter(Protocol):
    """A launcher that can go on with what an earlier head has started."""

    def adopt(self, who: Incarnation, step: str, node: str, job: str) -> bool:
        """Watch and end this process as if it had been started here. False: that cannot be."""

    def detach(self) -> None:
        """Let everything go on without this head."""


class Mortal(Protocol):
    """A launcher whose workers can be ended with it."""

    async def close(self) -> None:
        """End whatever still runs and wait until it is gone."""


def claimed(run_dir: Path) -> int:
    """The number of this head, which is the newest now. Raises ClusterError."""
    number = claim_head(run_dir)
    assert number is not None
    return number


def inherited(run_dir: Path, head: int, backend: str) -> Inheritance | None:
    """What an earlier head has left; None: there was none, or it has decided nothing.

    Raises UserError if nothing can be left of it, ClusterError if it cannot be read.
    """
    past = inherit(run_dir, head, now=time.monotonic(), wall=time.time())
    if past is not None and backend == "local":
        raise UserError(f"RUN: {run_dir.name}: has had its head; a local run ends with that")
    return past


async def part_from(launcher: Mortal, kind: type[BaseException] | None, *how: object) -> None:
    """End the workers with their head; but not if a bug ends it: the next head goes on with those
    that can outlive this one.
    """
    if isinstance(launcher, Adopter) and kind is not None and not issubclass(kind, TarragonError):
        log.error("the head ends by a bug; its workers wait for the next one")
        launcher.detach()
    else:
        await launcher.close()


def make_room(places: Places, state: State) -> None:
    """Places for workers that the run has been given since it began. Raises ClusterError."""
    beside = [worker for worker in state.workers if worker in places]
    added = [worker for worker in state.workers if worker not in places]
    if (problem := places.prepare(added, beside)) is not None:
        raise ClusterError(f"no place for {', '.join(added)}: {problem}")


def adopt(launcher: Launcher, past: Inheritance) -> None:
    """Have a launcher look after the processes that an earlier head has started, and end those
    that are not to stay.
    """
    if isinstance(launcher, Adopter):
        for place in past.places:
            launcher.adopt(place.who, place.step, place.node, place.job)
    for who in past.doomed:
        launcher.kill(who)


async def listen_again(gateway: GatewayConfig, *, again: bool) -> socket.socket:
    """The gateway's socket. `again`: an earlier head, on this very node, may still have its port;
    if it keeps it, any free one serves too, since clients read where the gateway is.

    Raises ConfigError.
    """
    deadline = time.monotonic() + _PORT_WAIT_S * again
    while True:
        try:
            return listen(gateway.host, gateway.port)
        except ConfigError as error:
            if not again or error.key != "gateway.port":
                raise
            if time.monotonic() > deadline:
                log.warning("%s; taking a free one", error)
                return listen(gateway.host, 0)
        await asyncio.sleep(_PORT_PAUSE_S)


async def cancel(task: asyncio.Task[None]) -> None:
    """Give a task up."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
