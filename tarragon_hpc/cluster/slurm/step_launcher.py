"""Workers as steps of an allocation: start, end, and the warm spares between them.

A worker's step is ended with its node's doubts in mind: its slot is given to nobody else before
Slurm has said that nothing is left there.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.local import log_path
from tarragon_hpc.cluster.slurm.commands import plain_environment
from tarragon_hpc.cluster.slurm.endings import Ending
from tarragon_hpc.cluster.slurm.running import Step, Steps
from tarragon_hpc.cluster.slurm.slots import Use, choose, choose_node, no_slot, slots_of
from tarragon_hpc.cluster.slurm.spares import Spares
from tarragon_hpc.cluster.slurm.steps import side_step, step_environment, worker_step
from tarragon_hpc.cluster.spare import Assignment
from tarragon_hpc.errors import ClusterError, NoSlot
from tarragon_hpc.ids import Incarnation, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.slurm.allocation import Allocation
    from tarragon_hpc.cluster.slurm.resources import Component
    from tarragon_hpc.cluster.slurm.slots import Slot, Slots
    from tarragon_hpc.cluster.spec import WorkerSpec
    from tarragon_hpc.config import SlurmConfig

_TERM_GRACE_S = 2.0

log = logging.getLogger(__name__)


class StepLauncher:
    """Starts workers as steps and reports, once each and in the event loop, that one has ended
    (`on_exit`, with the cause in words; its process may live on for all that if its node or its
    srun died). Output goes to `<run_dir>/logs/<worker>.<incarnation>.log`, what srun and Slurm say
    beside it to `.srun`. Whatever is started outlives the head; only `close` ends it.

    step_of: the step of a registered worker, `job.step`, or nothing. calm: whether no worker is
    being started, so that spares may use the machine.
    """

    def __init__(
        self,
        allocation: Allocation,
        parts: Sequence[Component],
        specs: Mapping[str, WorkerSpec],
        run_dir: Path,
        slurm: SlurmConfig,
        *,
        on_exit: Callable[[Incarnation, str], None],
        step_of: Callable[[Incarnation], str] = lambda who: "",
        calm: Callable[[], bool] = lambda: True,
    ) -> None:
        self.allocation = allocation
        self.slots: Slots = slots_of(allocation, parts)
        self._parts = {part.number: part for part in parts}
        self._specs = specs
        self._run_dir = run_dir
        self._slurm = slurm
        self._on_exit = on_exit
        self._step_of = step_of
        self._workers: dict[Incarnation, Step] = {}
        self._timers: dict[Incarnation, list[asyncio.TimerHandle]] = {}
        self._steps = Steps(self._ended, self._gone, lambda node: node in self.slots.bad)
        self._spares = Spares(self, self._steps, calm) if slurm.warm_spares else None

    def __repr__(self) -> str:
        running = ", ".join(map(str, self._workers)) or "nothing runs"
        return f"StepLauncher(job {self.allocation.job}, {running})"

    def start(self, who: Incarnation) -> int | None:
        """Start a worker; its pid is known once it registers. Raises ClusterError, NoSlot."""
        spec = self._specs[who.worker]
        if spec.role is Role.CS:
            step = self._start_aside(who, spec)
        else:
            choice = choose(self.slots, who.worker, warm=not spec.prefix)
            if choice is None:
                raise NoSlot(f"{who}: {no_slot(self.slots, who.worker)}")
            log.info("%s: %s: %s", who, choice.slot, choice.reason)
            step = self._become(who, spec, choice.slot, choice.spare)
        self._workers[who] = step
        if self._spares is not None:
            self._spares.look_soon()
        return None

    def has_room(self, worker: str) -> bool:
        """Whether a worker could be started now."""
        if worker.startswith(Role.CS):
            return choose_node(self.slots, (), worker) is not None
        return choose(self.slots, worker) is not None

    def stop(self, who: Incarnation, grace_s: float) -> None:
        """End a worker that was asked to leave: SIGTERM after `grace_s`, SIGKILL 2 s later."""
        step = self._workers.get(who)
        if step is not None:
            loop = asyncio.get_running_loop()
            self._timers.setdefault(who, []).extend(
                [
                    loop.call_later(grace_s, self._terminate, who),
                    loop.call_later(grace_s + _TERM_GRACE_S, self.kill, who),
                ]
            )

    def kill(self, who: Incarnation) -> None:
        """End a worker's step; one that is gone is ignored."""
        step = self._workers.get(who)
        if step is not None:
            step.id = step.id or self._step_of(who)
            self._steps.end(step)

    def adopt(self, who: Incarnation, step: str, node: str) -> bool:
        """Take over a worker that an earlier head started here. False: it is not of this job."""
        if step.partition(".")[0] not in (self.allocation.job, ""):
            return False
        spec = self._specs.get(who.worker)
        slot = None
        if spec is None or spec.role is not Role.CS:
            idle = [s for s in self.slots.order if s.node == node and s not in self.slots.held]
            slot = idle[0] if idle else None
            if slot is not None:
                self.slots = self.slots.take(slot, str(who), Use.WORKER)
        self._workers[who] = Step(str(who), node, slot, self.allocation.listed_as, step)
        if self._spares is not None:
            self._spares.look_soon()
        return True

    def distrust(self, node: str, why: str) -> None:
        """Start nothing on a node any more."""
        if node not in self.slots.bad:
            log.warning("node %s is not used any more: %s", node, why)
            self.slots = self.slots.spoil(node, why)
            if self._spares is not None:
                self._spares.leave(node)

    def lose(self, node: str) -> None:
        """Slurm has given a node up. Of what an earlier head had started there no srun will tell
        that it ended, and it may go on.
        """
        cause = f"node {node} was lost"
        for step in [s for s in self._workers.values() if s.node == node and s.process is None]:
            self._ended(step, Ending(cause, bad_node=cause, alive=True))
            self._steps.end(step)

    def update(self, allocation: Allocation) -> None:
        """What the job has now, as Slurm says."""
        if allocation != self.allocation:
            self.slots = slots_of(allocation, list(self._parts.values()), self.slots)
            self.allocation = replace(allocation, ids=allocation.ids or self.allocation.ids)

    def detach(self) -> None:
        """Let everything go on without this head: another one has taken over."""
        for step in self._workers.values():
            self._steps.forget(step)
        self._workers.clear()

    async def close(self) -> None:
        """End whatever still runs and wait until it is gone."""
        if self._spares is not None:
            self._spares.close()
        steps = list(self._workers.values())
        for who in list(self._workers):
            self.kill(who)
        for step in steps:
            if not step.srun_ended.is_set() and step.process is not None:
                await step.srun_ended.wait()
        if self._spares is not None:
            await self._spares.closed()
        await self._steps.close()

    # For the spares.

    def begin_spare(self, slot: Slot, name: str, command: Sequence[str]) -> Step:
        """Start a spare's step in an idle slot. Raises ClusterError."""
        step = self._run(name, slot, command, {}, pipes=True)
        self.slots = self.slots.take(slot, name, Use.LOADING)
        return step

    def mark_warm(self, step: Step) -> None:
        """A spare is ready to become a worker."""
        if step.slot is not None and self.slots.held.get(step.slot, ("",))[0] == step.name:
            self.slots = self.slots.take(step.slot, step.name, Use.WARM)

    def roles_of(self, slot: Slot) -> frozenset[Role]:
        """Who may be in a slot."""
        return self._parts[slot.part].roles & {Role.AW, Role.EW}

    @property
    def run_dir(self) -> Path:
        """Of the run."""
        return self._run_dir

    def _start_aside(self, who: Incarnation, spec: WorkerSpec) -> Step:
        used = [s.node for w, s in self._workers.items() if w.worker.startswith(Role.CS)]
        node = choose_node(self.slots, used, who.worker)
        if node is None:
            raise NoSlot(f"{who}: no node is left for it")
        command = self._command(who, spec)
        step = Step(str(who), node.name, None, self.allocation.listed_as)
        argv = side_step(self.allocation, node.part, node.name, str(who), command,
                         slurm=self._slurm)  # fmt: skip
        self._launch(step, argv, spec.env, pipes=False)
        self.slots = replace(self.slots, last={**self.slots.last, who.worker: node.name})
        return step

    def _become(self, who: Incarnation, spec: WorkerSpec, slot: Slot, spare: str) -> Step:
        """Have a spare become a worker, or else start it afresh in the slot."""
        if spare and self._spares is not None:
            order = Assignment(str(who), self._arguments(who, spec), dict(spec.env))
            step = None if spec.prefix else self._spares.use(spare, order)
            if step is not None:
                step.holder = str(who)
                self.slots = self.slots.take(slot, step.holder, Use.WORKER)
                return step
            self._spares.dismiss(spare)
        step = self._run(str(who), slot, self._command(who, spec), spec.env, pipes=False)
        self.slots = self.slots.take(slot, str(who), Use.WORKER)
        return step

    def _arguments(self, who: Incarnation, spec: WorkerSpec) -> list[str]:
        log_file = log_path(self._run_dir, who)
        return [*spec.arguments(who, self._run_dir), "--log", str(log_file)]

    def _command(self, who: Incarnation, spec: WorkerSpec) -> list[str]:
        return [*spec.prefix, *spec.program, *self._arguments(who, spec)]

    def _run(
        self, name: str, slot: Slot, command: Sequence[str], env: Mapping[str, str], *, pipes: bool
    ) -> Step:
        step = Step(name, slot.node, slot, self.allocation.listed_as)
        argv = worker_step(
            self.allocation, slot.part, slot.node, name, command,
            slurm=self._slurm, nodes=self._parts[slot.part].config, reads=pipes,
        )  # fmt: skip
        self._launch(step, argv, env, pipes=pipes)
        return step

    def _launch(
        self, step: Step, argv: Sequence[str], env: Mapping[str, str], *, pipes: bool
    ) -> None:
        said = self._run_dir / "logs" / f"{step.name}.srun"
        try:
            self._steps.start(
                step, argv, step_environment(plain_environment(), env), said, pipes=pipes
            )
        except OSError as error:
            raise ClusterError(f"cannot start {step.name}: srun: {error}") from None

    def _terminate(self, who: Incarnation) -> None:
        step = self._workers.get(who)
        if step is not None:
            step.id = step.id or self._step_of(who)
            self._steps.terminate(step)

    def _ended(self, step: Step, ending: Ending) -> None:
        """A step's srun has ended."""
        if ending.bad_node:
            self.distrust(step.node, ending.bad_node)
        who = next((w for w, s in self._workers.items() if s is step), None)
        if who is None:
            if self._spares is not None:
                self._spares.ended(step, ending)
            return
        del self._workers[who]
        for timer in self._timers.pop(who, ()):
            timer.cancel()
        if step.slot is not None and ending.alive:
            self.slots = self.slots.take(step.slot, step.holder or step.name, Use.REST)
        step.id = step.id or self._step_of(who)
        self._on_exit(who, ending.cause)

    def _gone(self, step: Step, doubt: str) -> None:
        """Nothing is left of a step, as far as can be found out."""
        who = next((w for w, s in self._workers.items() if s is step), None)
        if who is not None:  # an earlier head's: there is no srun that would say how it ended
            del self._workers[who]
            self._on_exit(who, "its step is gone")
        if doubt:
            self.distrust(step.node, doubt)
        if step.slot is not None:
            self.slots = self.slots.free(step.slot, step.holder or step.name)
        if self._spares is not None:
            self._spares.look_soon()
