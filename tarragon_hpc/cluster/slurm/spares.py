"""Keeps the idle slots of an allocation warm: each holds a process that has done the imports."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

import msgspec

from tarragon_hpc.cluster.spare import READY, Assignment
from tarragon_hpc.cluster.spec import ENTRY
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.slurm.endings import Ending
    from tarragon_hpc.cluster.slurm.running import Step, Steps
    from tarragon_hpc.cluster.slurm.slots import Slot, Slots
    from tarragon_hpc.ids import Role

# After a worker was started, and between looks whether all of them are there.
_QUIET_S = 1.0
# By then spares are started whether the others are there or not.
_PATIENCE_S = 60.0
_MOST_FAILURES = 3
_FILE = re.compile(r"spare([0-9]{1,9})\.srun")

log = logging.getLogger(__name__)


class Owner(Protocol):
    """Whose slots these are."""

    slots: Slots

    @property
    def run_dir(self) -> Path:
        """Of the run."""

    def begin_spare(self, slot: Slot, name: str, command: Sequence[str]) -> Step:
        """Start a spare's step. Raises ClusterError."""

    def mark_warm(self, step: Step) -> None:
        """It is ready to become a worker."""

    def roles_of(self, slot: Slot) -> frozenset[Role]:
        """What it may become."""


def unused(names: Iterable[str]) -> int:
    """The first number after all those that have been used, by the files in the directory of logs:
    an earlier head's spares may be workers now.
    """
    used = (_FILE.fullmatch(name) for name in names)
    return max((int(match[1]) + 1 for match in used if match is not None), default=0)


class Spares:
    """Spares by the names of their steps. All methods belong to the event loop's thread."""

    def __init__(self, owner: Owner, steps: Steps, calm: Callable[[], bool]) -> None:
        self._owner = owner
        self._steps = steps
        self._calm = calm
        self._spares: dict[str, Step] = {}
        self._warm: set[str] = set()
        self._numbers = itertools.count(unused(os.listdir(owner.run_dir / "logs")))
        self._failures: Counter[Slot] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._closing = False

    def __repr__(self) -> str:
        return f"Spares({len(self._warm)} of {len(self._spares)} are warm)"

    def look_soon(self) -> None:
        """Fill idle slots once no worker has been started for a while."""
        self._since = time.monotonic()
        self._arm()

    def use(self, name: str, order: Assignment) -> Step | None:
        """Have a spare become a worker; its step is the caller's from now on. None: it cannot."""
        step = self._spares.get(name)
        if step is None or step.process is None or step.process.stdin is None or step.doomed:
            return None
        try:
            os.write(step.process.stdin.fileno(), msgspec.json.encode(order) + b"\n")
            step.process.stdin.close()
        except OSError as error:
            log.warning("%s cannot become %s: %s", name, order.name, error)
            return None
        self._forget(name)
        return step

    def dismiss(self, name: str) -> None:
        """End a spare: its slot is needed for something else."""
        step = self._spares.get(name)
        if step is not None:
            self._hang_up(step)
            self._steps.end(step)

    def leave(self, node: str) -> None:
        """End the spares on a node."""
        for name, step in list(self._spares.items()):
            if step.node == node:
                self.dismiss(name)

    def ended(self, step: Step, ending: Ending) -> None:
        """A spare's srun has ended."""
        if step.name not in self._spares:
            return
        if step.name not in self._warm and step.slot is not None and not step.doomed:
            self._failures[step.slot] += 1
        if not self._closing:
            log.warning("%s on %s: %s", step.name, step.node, ending.cause)
        self._hang_up(step)
        self._forget(step.name)

    def close(self) -> None:
        """End all of them, and start no more."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for name in list(self._spares):
            self.dismiss(name)

    async def closed(self) -> None:
        """Returns when all of them have ended."""
        for step in list(self._spares.values()):
            await step.srun_ended.wait()

    def _arm(self) -> None:
        if not self._closing:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(_QUIET_S, self._look)

    def _look(self) -> None:
        self._timer = None
        idle = [s for s in self._owner.slots.idle if self._failures[s] < _MOST_FAILURES]
        if not idle:
            return
        if not self._calm() and time.monotonic() - self._since < _PATIENCE_S:
            self._arm()
            return
        for slot in idle:
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        name = f"spare{next(self._numbers)}"
        roles = ",".join(sorted(self._owner.roles_of(slot)))
        command = [*ENTRY, "--standby", name, "--roles", roles]
        command += ["--run-dir", str(self._owner.run_dir)]
        try:
            step = self._owner.begin_spare(slot, name, command)
        except ClusterError as error:
            log.warning("%s", error)
            self._failures[slot] += 1
            return
        assert step.process is not None
        assert step.process.stdout is not None
        self._spares[name] = step
        asyncio.get_running_loop().add_reader(step.process.stdout, self._heard, step)

    def _heard(self, step: Step) -> None:
        """It is ready, or its output has ended."""
        assert step.process is not None
        assert step.process.stdout is not None
        data = os.read(step.process.stdout.fileno(), 4096)
        word, _, text = data.partition(b" ")
        if word == READY:
            step.id = text.decode(errors="replace").strip()
            self._warm.add(step.name)
            if step.slot is not None:
                self._failures[step.slot] = 0
            self._owner.mark_warm(step)
        if not data:
            self._hang_up(step, output_only=True)

    def _forget(self, name: str) -> None:
        self._spares.pop(name, None)
        self._warm.discard(name)

    def _hang_up(self, step: Step, *, output_only: bool = False) -> None:
        assert step.process is not None
        stdout, stdin = step.process.stdout, step.process.stdin
        if stdout is not None and not stdout.closed:
            asyncio.get_running_loop().remove_reader(stdout)
            stdout.close()
        if stdin is not None and not stdin.closed and not output_only:
            with contextlib.suppress(OSError):
                stdin.close()
