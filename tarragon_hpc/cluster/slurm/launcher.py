"""The launcher of runs on Slurm: workers as steps of the allocation, else as jobs of their own.

`ladder` decides, `bad_nodes` remembers; here it is done and told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

from tarragon_hpc.cluster.slurm import losses
from tarragon_hpc.cluster.slurm.bad_nodes import BadNodes
from tarragon_hpc.cluster.slurm.job_launcher import JobLauncher
from tarragon_hpc.cluster.slurm.ladder import Promise, Rung, call_back, climb
from tarragon_hpc.cluster.slurm.slots import Use
from tarragon_hpc.errors import ClusterError, NoSlot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tarragon_hpc.cluster.slurm.step_launcher import StepLauncher
    from tarragon_hpc.cluster.slurm.watch import QueueWatch
    from tarragon_hpc.cluster.spec import WorkerSpec
    from tarragon_hpc.config import Config
    from tarragon_hpc.ids import Incarnation

_LOOK_S = 0.5
_FEWEST_DEATHS = 3

log = logging.getLogger(__name__)


class Tell(Protocol):
    """Writes a line into the timeline."""

    def __call__(
        self,
        event: str,
        *,
        worker: str | None = None,
        incarnation: int | None = None,
        **more: str,
    ) -> None: ...


class Head(Protocol):
    """Who hears what becomes of workers (the orchestrator, the timeline)."""

    def queued(self, who: Incarnation, job: str, reason: str, expected_start: str) -> None:
        """A worker waits, for its job or for a place; an empty reason: it runs now."""

    def ended(self, who: Incarnation, cause: str) -> None:
        """A worker has ended, or could not be started."""

    def connected(self, who: Incarnation) -> bool:
        """Whether a worker is there, by its own connection."""

    tell: Tell


class SlurmLauncher:
    """Starts each worker on the first rung of the ladder that holds it.

    steps: of the allocation; None in a pool. It is set after this object is made, with `step_ended`
    as its `on_exit`.
    """

    def __init__(
        self,
        config: Config,
        specs: Mapping[str, WorkerSpec],
        run_dir: Path,
        watch: QueueWatch,
        head: Head,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps: StepLauncher | None = None
        self._slurm = config.cluster.slurm
        self._head = head
        self._clock = clock
        limit = max(_FEWEST_DEATHS, config.cluster.max_restarts)
        self.bad = BadNodes(limit, config.cluster.restart_window_s)
        self._jobs = JobLauncher(config, specs, run_dir, watch, self, lambda: self.bad.reasons)
        self._waits: dict[Incarnation, str] = {}
        self._wanted_gone: set[Incarnation] = set()
        self._promise: Promise | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watch = watch
        self._following: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"SlurmLauncher({self.steps}, {self._jobs}, {len(self._waits)} wait)"

    def start(self, who: Incarnation) -> int | None:
        """Start a worker, or have it wait; its pid is known once it registers. Raises
        ClusterError.
        """
        if self._promise is not None and self._promise.worker == who.worker:
            self._promise = None
        no_slot: str | None = "this run has no slots"
        if self.steps is not None:
            self._follow(self.steps)
            try:
                self.steps.start(who)
                no_slot = None
            except NoSlot as error:
                no_slot = str(error).removeprefix(f"{who}: ")
        pool, own_jobs = self._slurm.topology == "pool", self._slurm.replacement_jobs
        rung, reason = climb(no_slot, pool=pool, replacement_jobs=own_jobs)
        if rung is Rung.JOB:
            self._jobs.start(who)
        if rung is Rung.WAIT:
            self._waits[who] = reason
            asyncio.get_running_loop().call_soon(self._say_waits, who)
        self._tell_place(who, rung, reason)
        self._look_soon()
        return None

    def stop(self, who: Incarnation, grace_s: float) -> None:
        """End a worker that was asked to leave, by force after `grace_s`."""
        self._wanted_gone.add(who)
        self._drop(who)
        if self.steps is not None:
            self.steps.stop(who, grace_s)
        self._jobs.stop(who, grace_s)

    def kill(self, who: Incarnation) -> None:
        """End a worker at once; one that is gone is ignored."""
        self._drop(who)
        if self.steps is not None:
            self.steps.kill(who)
        self._jobs.kill(who)

    def adopt(self, who: Incarnation, step: str, node: str, job: str) -> bool:
        """Take over a worker that an earlier head started, as a step or as a job of its own. False:
        it is of neither.
        """
        if job:
            self._jobs.adopt(who, job)
            self._look_soon()
            return True
        if self.steps is None:
            return False
        self._follow(self.steps)
        return self.steps.adopt(who, step, node)

    def distrust(self, node: str, why: str) -> None:
        """Start nothing on a node any more."""
        before, self.bad = self.bad, self.bad.blame(node, why)
        if self.bad is not before:
            log.warning("node %s gets no worker any more: %s", node, why)
            self._head.tell("node avoided", node=node, reason=why)
        if self.steps is not None:
            self.steps.distrust(node, why)

    def recall(self, reasons: Mapping[str, str]) -> None:
        """Avoid what an earlier head has avoided; that has been told."""
        for node, why in reasons.items():
            self.bad = self.bad.blame(node, why)
            self.distrust(node, why)

    def detach(self) -> None:
        """Let everything go on without this head: another one has taken over."""
        self._stop_looking()
        if self.steps is not None:
            self.steps.detach()
        self._jobs.detach()

    async def close(self) -> None:
        """End whatever still runs or waits, and wait until it is gone."""
        self._stop_looking()
        self._waits.clear()
        closings = [self._jobs.close()]
        if self.steps is not None:
            closings.append(self.steps.close())
        await asyncio.gather(*closings)

    # What the launchers below tell.

    def step_ended(self, who: Incarnation, cause: str) -> None:
        """A worker's step has ended."""
        assert self.steps is not None
        self._count(who, self.steps.slots.last.get(who.worker, ""))
        self._head.ended(who, cause)

    def ended(self, who: Incarnation, cause: str, nodes: tuple[str, ...]) -> None:
        """A worker's job is over."""
        self._count(who, nodes[0] if nodes else "")
        self._head.ended(who, cause)

    def queued(self, who: Incarnation, job: str, reason: str, expected_start: str) -> None:
        """A worker's job waits, or runs."""
        self._head.queued(who, job, reason, expected_start)

    def blamed(self, node: str, why: str) -> None:
        """A job could not be run on a node."""
        self.distrust(node, why)

    def doubtful(self) -> set[str]:
        """Nodes where the end of a step is in doubt: dead ones, maybe, before Slurm knows."""
        held = self.steps.slots.held.items() if self.steps is not None else ()
        return {slot.node for slot, holder in held if holder.use is Use.REST}

    def connected(self, who: Incarnation) -> bool:
        """Whether a worker is there."""
        return self._head.connected(who)

    def _count(self, who: Incarnation, node: str) -> None:
        if who in self._wanted_gone:
            self._wanted_gone.discard(who)
        elif node:
            after = self.bad.died(node, self._clock())
            new = after.reasons.keys() - self.bad.reasons.keys()
            self.bad = BadNodes(after.limit, after.window_s, self.bad.reasons, after.deaths)
            for name in new:
                self.distrust(name, after.reasons[name])

    # Who waits.

    def _drop(self, who: Incarnation) -> None:
        if self._waits.pop(who, None) is not None:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._head.ended, who, "it was ended before it was started")

    def _say_waits(self, who: Incarnation) -> None:
        if who in self._waits:
            self._head.queued(who, "", self._waits[who], "")

    def _look_soon(self) -> None:
        if self._timer is None and self.steps is not None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _follow(self, steps: StepLauncher) -> None:
        if self._following is None:
            work = losses.follow(self._watch, steps, self.distrust)
            self._following = asyncio.create_task(work, name="allocation")

    def _stop_looking(self) -> None:
        if self._following is not None:
            self._following.cancel()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Give slots that have become free to those who wait; the allocation is paid for."""
        self._timer = None
        for who in list(self._waits):
            self._try(who)
        waiting = {who.worker: who for who in self._jobs.waiting()}
        fitting = {w for w in waiting if self.steps is not None and self.steps.has_room(w)}
        worker = call_back(list(waiting), fitting, self._promise, self._clock())
        if worker is not None:
            self._promise = Promise(worker, self._clock())
            why = "its job left the queue: a slot of the allocation is free"
            log.info("%s: %s", waiting[worker], why)
            self._jobs.give_way(waiting[worker], why)
        if self._waits or self._jobs.busy:
            self._look_soon()

    def _try(self, who: Incarnation) -> None:
        if self.steps is None or not self.steps.has_room(who.worker):
            return
        try:
            self.steps.start(who)
        except NoSlot:
            return
        except ClusterError as error:
            del self._waits[who]
            self._head.ended(who, str(error))
            return
        del self._waits[who]
        self._head.queued(who, "", "", "")
        self._tell_place(who, Rung.SLOT, "a slot has become free")

    def _tell_place(self, who: Incarnation, rung: Rung, reason: str) -> None:
        slot = self.steps.slots.of(str(who)) if self.steps is not None else None
        where = str(slot) if slot is not None else rung.value
        if rung is not Rung.SLOT:
            log.info("%s: %s: %s", who, rung, reason)
        self._head.tell(
            "worker placed", worker=who.worker, incarnation=who.number, where=where, reason=reason
        )
