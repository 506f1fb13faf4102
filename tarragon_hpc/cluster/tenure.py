"""From when until when a process is the head of its run: from its claim until there is a newer one.

A head that was superseded (it was stopped, or cut off, and another one took over) must not touch
the workers any more: they follow the other one. It looks into the run directory every now and
then, and before it starts or ends anything; what it finds there is the end of it, at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.directory import Directory, said
from tarragon_hpc.cluster.rendezvous import newest_claim
from tarragon_hpc.cluster.supervisor import EXIT_SUPERSEDED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import NoReturn

    from tarragon_hpc.ids import Incarnation
    from tarragon_hpc.orchestrator.service import Launcher

_LOOK_S = 0.7
_FRESH_S = 0.1  # a look holds for so long, so that a burst of starts costs one

log = logging.getLogger(__name__)


def leave() -> NoReturn:
    """End the process as it stands: its workers are somebody else's."""
    logging.shutdown()
    os._exit(EXIT_SUPERSEDED)


class Tenure:
    """Of the `number`-th head. `leave` is called once it is over, and does not return."""

    def __init__(self, run_dir: Path, number: int, leave: Callable[[], NoReturn] = leave) -> None:
        self.number = number
        self._run = Directory(run_dir)
        self._leave = leave
        self._looked = float("-inf")

    def __repr__(self) -> str:
        return f"Tenure(head {self.number})"

    def check(self) -> None:
        """Leave if there is a newer head. A directory that cannot be read says nothing."""
        now = time.monotonic()
        if now - self._looked < _FRESH_S:
            return
        try:
            newest = newest_claim(self._run.names())
        except OSError as error:
            log.warning("%s: %s", self._run.path, said(error))
            return
        self._looked = now
        if newest > self.number:
            log.warning("head %d is superseded by head %d and leaves", self.number, newest)
            self._leave()

    async def watch(self) -> None:
        """Check for ever, in a thread."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await asyncio.to_thread(self.check)


class Guarded:
    """A launcher that does nothing on behalf of a head that was superseded."""

    def __init__(self, launcher: Launcher, tenure: Tenure) -> None:
        self._launcher = launcher
        self._tenure = tenure

    def __repr__(self) -> str:
        return f"Guarded({self._launcher!r}, {self._tenure!r})"

    def start(self, who: Incarnation) -> int | None:
        """As the launcher's."""
        self._tenure.check()
        return self._launcher.start(who)

    def stop(self, who: Incarnation, grace_s: float) -> None:
        """As the launcher's."""
        self._tenure.check()
        self._launcher.stop(who, grace_s)

    def kill(self, who: Incarnation) -> None:
        """As the launcher's."""
        self._tenure.check()
        self._launcher.kill(who)
