"""Inflicts faults on the workers of one run, and says so in chaos.jsonl and in its timeline."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from tarragon_hpc.cluster.faults import (
    CONT,
    HEAL,
    SLOW,
    STOP,
    WIRE_FAULTS,
    Target,
    Victim,
    check_running,
    find_target,
    serving_targets,
)
from tarragon_hpc.errors import ClusterError, UserError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable
    from pathlib import Path

    from tarragon_hpc.cluster.client import Head
    from tarragon_hpc.cluster.fault_plan import PlannedFault

CHAOS = "chaos.jsonl"
FACTOR = 10.0


class Wires(Protocol):
    """What joins the hosts of a run, each with one worker and named like it (`bench.hosts`)."""

    def cut(self, host: str) -> None: ...
    def silence(self, host: str) -> None: ...
    def heal(self, host: str) -> None: ...


class Chaos:
    """Faults of one run. `say`: gets a line per fault. `seed` goes into the records. `wires`: for
    faults of the network.
    """

    def __init__(
        self,
        run_dir: Path,
        head: Head,
        say: Callable[[str], None],
        *,
        seed: int | None = None,
        wires: Wires | None = None,
    ) -> None:
        self._path = run_dir / CHAOS
        self._head = head
        self._say = say
        self._seed = seed
        self._wires = wires
        self._host = socket.gethostname()

    @contextlib.asynccontextmanager
    async def aim(self, worker: str) -> AsyncIterator[Victim]:
        """A worker's process, surely it. Raises UserError if there is no such process here."""
        target = find_target(await self._head.status(), worker, self._host)
        async with self._hold(target) as victim:
            if victim is None:
                raise UserError(f"WORKER: {target} (pid {target.pid}) has just ended")
            yield victim

    async def serving(self, roles: Collection[str]) -> list[Target]:
        """The workers that can be hit now. Raises UserError if the run is not serving."""
        status = await self._head.status()
        check_running(status)
        return serving_targets(status, roles, self._host)

    async def strike(
        self, victim: Victim, fault: str, *, factor: float = FACTOR, lasts_s: float | None = None
    ) -> None:
        """One fault, to its end: a kill, a cont; a stop that is continued after `lasts_s` seconds,
        if that is given; a slowdown or a fault of the network of `lasts_s` seconds.

        Cancelled, it continues at once whatever was to be continued.
        """
        if fault == SLOW:
            await self._slow(victim, factor, lasts_s or 0.0)
            return
        if fault in WIRE_FAULTS:
            await self._isolate(victim.target, fault, lasts_s or 0.0)
            return
        struck = time.monotonic()  # the other side may be ahead of us once the signal is out
        if victim.signal(fault):
            try:
                await self._record(victim.target, fault, struck)
                if fault == STOP and lasts_s is not None:
                    await asyncio.sleep(lasts_s)
            finally:
                if fault == STOP and lasts_s is not None:
                    victim.signal(CONT)
            if fault == STOP and lasts_s is not None:
                await self._record(victim.target, CONT, time.monotonic())
        else:
            self._say(f"{victim.target} has ended before the {fault}")

    async def rampage(
        self, plan: Iterable[PlannedFault], roles: Collection[str], factor: float = FACTOR
    ) -> int:
        """Everything that is planned; returns how many faults there were. Ends early with the run.

        Faults may overlap. Raises UserError if the run is not serving at the beginning.
        """
        await self.serving(roles)
        began, count = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            for planned in plan:
                await asyncio.sleep(max(0.0, began + planned.at_s - time.monotonic()))
                try:
                    candidates = await self.serving(roles)
                except (UserError, ClusterError) as over:
                    self._say(f"over: {over}")
                    break
                if not candidates:
                    self._say(f"no {planned.fault}: none of {', '.join(roles)} serves just now")
                    continue
                count += 1
                group.create_task(self._carry_out(planned, planned.choose(candidates), factor))
        return count

    async def _carry_out(self, planned: PlannedFault, target: Target, factor: float) -> None:
        try:
            async with self._hold(target) as victim:
                if victim is None:
                    self._say(f"{target} has ended before the {planned.fault}")
                else:
                    await self.strike(victim, planned.fault, factor=factor, lasts_s=planned.lasts_s)
        except ClusterError as error:
            self._say(f"no {planned.fault} of {target}: {error}")

    @contextlib.asynccontextmanager
    async def _hold(self, target: Target) -> AsyncIterator[Victim | None]:
        """None if it is gone. The pid is the worker's if the head still says so afterwards."""
        try:
            held = Victim(target)
        except ProcessLookupError:
            yield None
            return
        with held:
            entries = {e["id"]: e for e in (await self._head.status())["workers"]}
            entry = entries.get(target.worker, {})
            same = (entry.get("incarnation"), entry.get("pid")) == target[1:]
            yield held if same and entry["state"] not in ("stopped", "dead") else None

    async def _slow(self, victim: Victim, factor: float, seconds: float) -> None:
        give_up = threading.Event()
        cycle = asyncio.ensure_future(asyncio.to_thread(victim.slow, factor, seconds, give_up))
        try:
            more = {"factor": factor, "for_s": round(seconds, 3)}
            await self._record(victim.target, SLOW, time.monotonic(), more)
            await asyncio.shield(cycle)
        finally:
            give_up.set()
            await cycle
        await self._record(victim.target, CONT, time.monotonic())

    async def _isolate(self, target: Target, fault: str, seconds: float) -> None:
        if self._wires is None:
            raise UserError(f"FAULT: {fault}: the workers of this run share a host")
        struck = time.monotonic()
        try:
            await asyncio.to_thread(getattr(self._wires, fault), target.worker)
            await self._record(target, fault, struck, {"for_s": round(seconds, 3)})
            await asyncio.sleep(seconds)
        finally:
            self._wires.heal(target.worker)
        await self._record(target, HEAL, time.monotonic())

    async def _record(
        self, target: Target, fault: str, mono: float, more: dict[str, float] | None = None
    ) -> None:
        """What was done, when (of this host's monotonic clock), to whom."""
        wall = time.time() - (time.monotonic() - mono)
        about: dict[str, str | int | float] = {"incarnation": target.incarnation, "pid": target.pid}
        about |= more or {}
        if self._seed is not None:
            about["seed"] = self._seed
        line = {"time": round(wall, 6), "mono": round(mono, 6), "worker": target.worker}
        with self._path.open("ab", buffering=0) as file:
            file.write(msgspec.json.encode({**line, "fault": fault, **about}) + b"\n")
        self._say(f"{fault} {target} (pid {target.pid})")
        about["ago_s"] = round(time.monotonic() - mono, 6)
        try:
            await self._head.note(f"chaos: {fault}", target.worker, about)
        except ClusterError as error:
            self._say(f"not in the timeline: {error}")
