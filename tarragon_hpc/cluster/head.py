"""The head process: orchestrator, control port and gateway in one event loop.

It imports neither torch nor vllm. Whatever can be wrong with the configuration, the checkpoint or
the port is found before the first worker is started.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.assemble import Fresh, Parts, RunInfo, assemble
from tarragon_hpc.cluster.ending import Ending, signals
from tarragon_hpc.cluster.inheritance import final_state
from tarragon_hpc.cluster.local import log_path, quoted_tail
from tarragon_hpc.cluster.rendezvous import open_run
from tarragon_hpc.cluster.slurm.chain import successor_of
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator.state import Phase, RunPhase, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path
    from typing import NoReturn

    from tarragon_hpc.config import Config

__all__ = ["RunInfo", "run_service"]

_DESCRIPTORS = 1 << 16
# For an errand to see that the run is handed over, once all its requests have ended.
_ERRAND_S = 2.0

log = logging.getLogger(__name__)


async def run_service(
    config: Config,
    *,
    run_dir: Path | None = None,
    run: Path | None = None,
    head_number: int | None = None,
    on_ready: Callable[[RunInfo], None],
    stop: asyncio.Event,
    work: Callable[[RunInfo], Awaitable[None]] | None = None,
    more: Callable[[], Mapping[str, Any]] = dict,
    on_handover: Callable[[], None] = lambda: None,
    on_interrupt: Callable[[], NoReturn] | None = None,
) -> int:
    """Run a service until `stop` is set, SIGINT, SIGTERM or SIGHUP arrives, a client stops it, or
    `work` (begun once everything serves) is done. Returns the exit status, 0.

    run_dir: where to make the run's directory; run: a directory that was made for it before, and
    may have had other heads; head_number: the claim of this one, if there is one. A run that has
    ended for good is left as it is. more: what else the run's status says. SIGUSR2, and in a job
    SIGTERM, hand the run over (`ending.py`): `on_handover` is called, and `work` not cancelled, but
    answered with 503.
    on_interrupt: is called instead by the signals of a terminal, and leaves the run as it is.
    Running requests may finish for `cluster.drain_timeout_s`; a second signal cuts that short.
    Nothing is left behind but the run directory. Raises UserError for the user's mistakes, before
    any worker was started, ClusterError if the workers could not be started, and what `work`
    raises.
    """
    if run is not None and (state := final_state(open_run(run))) is not None:
        log.info("run %s has ended: %s", state.run, state.reason)
        return 0
    ending = Ending(stop, config.cluster)
    _allow_descriptors()
    async with AsyncExitStack() as stack:
        stack.enter_context(signals(ending, on_interrupt))
        where = run or Fresh(run_dir)
        parts = await assemble(config, where, ending, stack, more, head_number=head_number)
        log.info("run %s in %s", parts.info.run, parts.info.run_dir)
        successor = successor_of(config, parts.info.run_dir, parts.timeline)
        successor.begin()
        try:
            return await _live(parts, ending, on_ready, work, on_handover)
        finally:
            state = parts.orchestrator.state
            over = state.phase is RunPhase.ENDED and not state.handover
            await successor.close(over=over)


async def _live(
    parts: Parts,
    ending: Ending,
    on_ready: Callable[[RunInfo], None],
    work: Callable[[RunInfo], Awaitable[None]] | None,
    on_handover: Callable[[], None],
) -> int:
    """Start everything, serve, drain, stop. Raises ClusterError if the start failed."""
    serving = parts.reporter.serving
    run = asyncio.create_task(parts.orchestrator.run(), name="orchestrator")
    errand: asyncio.Future[None] | None = None
    past = parts.orchestrator.state
    if past.phase is RunPhase.DRAINING:
        # The head before this one was about to stop; the requests that it waited for were its own.
        parts.orchestrator.stop(past.reason, handover=past.handover)
    try:
        await _first(run, serving.wait(), ending.stop.wait())
        if serving.is_set() and not run.done():
            on_ready(parts.info)
            errand = asyncio.ensure_future(work(parts.info)) if work else None
            await _first(run, ending.stop.wait(), *([errand] if errand else []))
        if not run.done():
            if errand is not None and errand.done():
                ending.reason = "its work is done"
            if ending.handover:
                on_handover()
            else:
                await _cancel(errand)
            await _wind_down(parts, ending, run)
            if ending.handover and errand is not None:  # its requests have been cut by now
                await asyncio.wait([errand], timeout=_ERRAND_S)
        state = await run
    finally:
        ending.ended.set()
        await _cancel(run, errand)
    if state.failed:
        raise ClusterError(_explain(state, parts.info.run_dir))
    if errand is not None and not errand.cancelled():
        errand.result()
    return 0


async def _wind_down(parts: Parts, ending: Ending, run: asyncio.Task[State]) -> None:
    if ending.handover:
        log.warning("handing over: %s", ending.reason)
        parts.timeline.record("handover began", reason=ending.reason, drain_s=ending.drain_s)
        parts.sessions.hand_over(ending.reason)
    if parts.orchestrator.state.phase is RunPhase.RUNNING:
        parts.orchestrator.drain(ending.reason, ending.drain_s)
        await _first(run, parts.sessions.quiet(ending.drain_s), ending.hurry.wait())
    if ending.handover:
        # Before they are ended here: with that the stores would forget them.
        await _first(run, parts.save(ending.save_s), ending.hurry.wait())
        words = f"{ending.reason}; come back to it: the service goes on after that"
        parts.suspend(words)
    if parts.orchestrator.state.phase is RunPhase.DRAINING:
        parts.sessions.cut()
    parts.orchestrator.stop(ending.reason, handover=ending.handover)


def _explain(state: State, run_dir: Path) -> str:
    """Why a run failed, with the end of the log of the worker that died first."""
    dead = [w for w in state.workers.values() if w.phase is Phase.DEAD]
    if not dead:
        return f"{state.reason}; see {run_dir / 'logs'}"
    first = min(dead, key=lambda w: w.since)
    path = log_path(run_dir, Incarnation(first.worker, first.incarnation))
    return f"{state.reason}; the end of {path}:{quoted_tail(path) or ' (empty)'}"


def _allow_descriptors() -> None:
    """As many as this user may have: whoever opens connections to the gateway must not keep the
    workers' out.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _first(*waits: asyncio.Future[Any] | Awaitable[Any]) -> None:
    """Wait until one of these is done. Futures go on; plain coroutines are given up."""
    futures = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancel(*(f for f, wait in zip(futures, waits, strict=True) if f is not wait))


async def _cancel(*futures: asyncio.Future[Any] | None) -> None:
    """Give up what is still going on; results and errors of these are not looked at here."""
    pending = [f for f in futures if f is not None and not f.done()]
    for future in pending:
        future.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
