"""Running steps: their sruns, how they end, and how they are ended.

An srun reports how its task ended, but it is not the task: it may die, or be told by Slurm that the
node failed, while the task goes on. So a step counts as gone once its srun says so, or once Slurm
does not list it any more. Sruns have sessions of their own and outlive the head. What they and
Slurm say goes to a file, so that it outlives the head as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.processes import kill_group, start_free
from tarragon_hpc.cluster.slurm.commands import SlurmError, acall
from tarragon_hpc.cluster.slurm.endings import Ending, classify

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.slurm.slots import Slot

# For an srun that was told to end its step, until it is killed; and for a step that was cancelled,
# until nobody looks for it any more.
_SRUN_S = 2.0
_LOOKS_S = (0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 5.0, 10.0, 20.0, 40.0)
# At the end nobody waits longer than this for the next look.
_LAST_LOOKS_S = 0.5
_SAID_BYTES = 16 << 10

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Step:
    """One step. name: Slurm's for it, which is unique in its job. jobs: where `squeue` looks for it
    (`Allocation.listed_as`). id: `job.step`, empty until it is known. process None: another head
    started it. slot None: it takes none. holder: in whose name it has the slot, if not in its own.
    """

    name: str
    node: str
    slot: Slot | None
    jobs: str
    id: str = ""
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    said: Path | None = None
    holder: str = ""
    doomed: bool = False
    srun_ended: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Steps:
    """Starts steps, watches and ends them. `on_end` is called once each when a step's srun has
    ended, `on_gone` once each when nothing is left of it, at the same time or later. All methods
    belong to the event loop's thread and return at once.
    """

    def __init__(
        self,
        on_end: Callable[[Step, Ending], None],
        on_gone: Callable[[Step, str], None],
        node_lost: Callable[[str], bool],
    ) -> None:
        """`node_lost`: whether Slurm has given a node up. `on_gone` gets why the step may be alive
        for all that, or nothing.
        """
        self._on_end = on_end
        self._on_gone = on_gone
        self._node_lost = node_lost
        self._tasks: set[asyncio.Task[object]] = set()
        self._closing = asyncio.Event()

    def start(
        self, step: Step, command: Sequence[str], env: Mapping[str, str], said: Path, *, pipes: bool
    ) -> None:
        """Run a step's srun. pipes: its standard input and output are the caller's. Raises
        OSError.
        """
        step.said = said
        step.process, step.pidfd = start_free(command, env, said, pipes=pipes)
        asyncio.get_running_loop().add_reader(step.pidfd, self._reap, step)

    def end(self, step: Step) -> None:
        """End a step at once, whatever it takes. Again: nothing happens."""
        if not step.doomed and not step.gone.is_set():
            step.doomed = True
            self._signal(step, signal.SIGTERM)  # srun ends its step then, without asking Slurm
            self._spawn(self._end(step))

    def terminate(self, step: Step) -> None:
        """SIGTERM the task of a step."""
        if not step.doomed and not step.gone.is_set():
            self._spawn(self._cancel(step, "--signal=TERM"))

    async def close(self) -> None:
        """Returns when everything that was begun here is done, but for steps that Slurm lists for
        long after they were cancelled.
        """
        self._closing.set()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def forget(self, step: Step) -> None:
        """Watch a step no longer; it goes on."""
        if step.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(step.pidfd)
            os.close(step.pidfd)
            step.pidfd = -1

    def _spawn(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _signal(self, step: Step, number: int) -> None:
        if step.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(step.pidfd, number)

    def _reap(self, step: Step) -> None:
        assert step.process is not None
        # It is a zombie now, so its pid still names its group: srun has a process that watches it.
        kill_group(step.process.pid)
        returncode = step.process.wait()
        self.forget(step)
        ending = classify(
            returncode, read_said(step.said), step.node, node_lost=self._node_lost(step.node)
        )
        step.srun_ended.set()
        if not ending.alive:
            _tidy(step.said)
        self._on_end(step, ending)
        if not ending.alive:
            self._finish(step, "")
        elif not step.doomed:
            step.doomed = True
            self._spawn(self._end(step))

    def _finish(self, step: Step, doubt: str) -> None:
        if not step.gone.is_set():
            step.gone.set()
            self._on_gone(step, doubt)

    async def _end(self, step: Step) -> None:
        known = await self._cancel(step)
        if step.process is not None and not step.srun_ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(step.srun_ended.wait(), _SRUN_S)
        if step.process is not None and not step.srun_ended.is_set():
            kill_group(step.process.pid)
            await step.srun_ended.wait()
        if step.gone.is_set():
            return
        doubt = await self._seen_gone(step) if known else ""
        self._finish(step, doubt)

    async def _seen_gone(self, step: Step) -> str:
        """Wait until Slurm lists a step no more; why it may still run, if it always does."""
        for pause in _LOOKS_S:
            if step.gone.is_set():
                return ""
            try:
                if number_of(step.id) not in map(number_of, await list_steps(step.jobs)):
                    return ""
            except SlurmError as error:
                if error.unknown_job:
                    return ""
                log.warning("%s (step %s): %s", step.name, step.id, error)
            if self._closing.is_set() and pause > _LAST_LOOKS_S:
                return ""
            if pause > _LAST_LOOKS_S:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause)
            else:
                await asyncio.sleep(pause)
        return f"Slurm still lists step {step.id}"

    async def _cancel(self, step: Step, *flags: str) -> bool:
        """Send a step a signal through Slurm; False: Slurm knows no such step."""
        try:
            if not step.id:
                steps = await list_steps(step.jobs)
                step.id = next((i for i, name in steps.items() if name == step.name), "")
            if step.id:
                await acall(["scancel", *flags, step.id])
        except SlurmError as error:
            if not error.unknown_job and "already completing" not in error.words:
                log.warning("%s (step %s): %s", step.name, step.id or "unknown", error)
        return bool(step.id)


def number_of(step: str) -> str:
    """Of a step; unique in a heterogeneous job, too, where `squeue` puts the component's id before
    it, while the step itself is told the leader's.
    """
    return step.rpartition(".")[2]


async def list_steps(jobs: str) -> dict[str, str]:
    """The names of the steps of jobs by their ids. Raises SlurmError."""
    text = await acall(["squeue", "-h", "-s", "-j", jobs, "-o", "%i|%j"], limit_s=20)
    pairs = (line.strip().partition("|") for line in text.splitlines())
    return {step: name for step, _, name in pairs}


def read_said(path: Path | None) -> str:
    """The end of what an srun said; empty if that cannot be read."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _SAID_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _tidy(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
