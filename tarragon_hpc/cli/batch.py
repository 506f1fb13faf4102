"""`tarragon generate`: a run of its own for a file of requests."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tarragon_hpc.cli.sabotage import Sabotage, aftermath, read_sabotage
from tarragon_hpc.cli.serve import read_config
from tarragon_hpc.cluster.client import query_status
from tarragon_hpc.cluster.head import RunInfo, run_service
from tarragon_hpc.cluster.work import Work
from tarragon_hpc.errors import UserError
from tarragon_hpc.gateway.tls import own_client_context
from tarragon_hpc.generate.client import BatchClient
from tarragon_hpc.generate.inputs import read_requests
from tarragon_hpc.generate.outputs import ResultFile
from tarragon_hpc.generate.report import Tally, closing_line, contributions, progress_bar
from tarragon_hpc.observe.log import configure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.config import Config
    from tarragon_hpc.generate.inputs import Request
    from tarragon_hpc.generate.outputs import Outcome

_OWN_DOOR = ("gateway.host=127.0.0.1", "gateway.port=0")
_INTERRUPTED = 130


def make_work(source: str | None, target: str | None) -> Work:
    """A batch, with files that are found from every directory; without files: to serve."""
    if source is None and target is None:
        return Work()
    if source is None or target is None:
        raise UserError("--input, --output: a batch needs both")
    if source == target:
        raise UserError(f"--output {target!r}: is also the input")
    return Work("generate", _anywhere(source), _anywhere(target))


def _anywhere(name: str) -> str:
    """An absolute path; URLs are that already."""
    if "://" in name or "::" in name:
        return name
    return str(Path(name).expanduser().absolute())


def generate(
    path: Path | None,
    overrides: Sequence[str],
    source: str,
    target: str,
    run_dir: Path | None,
    chaos: str | None = None,
    *,
    site: str | None = None,
    wait: bool = False,
    allow_fragile: bool = False,
) -> int:
    """Answer what has no answer yet, or submit a job that does; returns the exit status.

    0: every request has its result, or the job was submitted. 1: some failed in the service and
    can be tried again. chaos: faults on the way, such as `kill:ew1,kill:aw0`. wait: for the job.
    """
    config = read_config(path, [*overrides, *_OWN_DOOR], site, allow_fragile=allow_fragile)
    if config.cluster.backend == "slurm":
        if chaos is not None:
            raise UserError("--chaos: is for cluster.backend local")
        return _submit(config, make_work(source, target), run_dir, wait=wait)
    faults = read_sabotage(chaos, config) if chaos is not None else None
    make_work(source, target)
    requests = read_requests(source)
    with ResultFile(target, {r.custom_id for r in requests}) as results:
        todo = [r for r in requests if r.custom_id not in results.done]
        if results.done:
            print(f"{target}: {len(results.done)} of {len(requests)} requests are done already")
        if not todo:
            return 0
        sabotage = None if faults is None else Sabotage(faults, len(todo))
        return asyncio.run(_Batch(config, todo, results, sabotage).run(run_dir))


def _submit(config: Config, work: Work, run_dir: Path | None, *, wait: bool) -> int:
    """Submit a job for a batch, once its files have been looked at; returns the exit status."""
    from tarragon_hpc.cli.submit import submit

    requests = read_requests(work.source)
    file = Path(work.target)
    there = file.exists()
    with ResultFile(work.target, {r.custom_id for r in requests}) as results:
        done = len(results.done)
    if not there and file.is_file():
        file.unlink()  # the job makes it, if there is one
    if done:
        print(f"{work.target}: {done} of {len(requests)} requests are done already")
    return 0 if done == len(requests) else submit(config, work, run_dir, wait=wait)


class _Batch:
    """One batch against one run of its own."""

    def __init__(
        self,
        config: Config,
        todo: list[Request],
        results: ResultFile,
        sabotage: Sabotage | None = None,
    ) -> None:
        self._config = config
        self._sabotage = sabotage
        self._todo = todo
        self._results = results
        self._tally = Tally()
        self._status: dict[str, Any] | None = None
        self._seconds = 0.0
        self._progress = progress_bar(Console(stderr=True))
        self._bar = self._progress.add_task(self._starting(), start=False, total=len(todo))

    async def run(self, run_dir: Path | None) -> int:
        with self._progress:
            # Set up here: the bar redirects stderr, and the log must go where the bar lets it.
            configure("head", logging.WARNING)
            await run_service(
                self._config,
                run_dir=run_dir,
                on_ready=self._ready,
                stop=asyncio.Event(),
                work=self._answer,
            )
        return self._close()

    def _starting(self) -> str:
        c = self._config
        return f"starting {c.attention.workers} AW + {c.experts.workers} EW"

    def _ready(self, _info: RunInfo) -> None:
        self._progress.start_task(self._bar)
        self._progress.update(self._bar, description="generating")

    async def _answer(self, info: RunInfo) -> None:
        config = self._config
        keys = config.gateway.api_keys
        client = BatchClient(
            info.endpoint,
            concurrency=self._concurrency(),
            api_key=keys[0] if keys else None,
            tls=own_client_context(config.gateway),
        )
        began = time.monotonic()
        harm = asyncio.ensure_future(self._harm(info.run_dir))
        try:
            await client.run(self._todo, self._deliver)
            self._seconds = time.monotonic() - began
            await harm
        finally:
            self._seconds = self._seconds or time.monotonic() - began
            harm.cancel()
            await asyncio.gather(harm, return_exceptions=True)
        # The workers' counters travel with their heartbeats: wait for the ones after the end.
        await asyncio.sleep(2 * config.detection.heartbeat_ms / 1000)
        self._status = await query_status(info.run_dir)

    async def _harm(self, run_dir: Path) -> None:
        if self._sabotage is not None:
            await self._sabotage.run(run_dir, self._progress.console.print)

    def _concurrency(self) -> int:
        """Enough to keep every AW's batch full while answers travel, never more than is taken."""
        slots = self._config.attention.workers * self._config.attention.max_num_seqs
        return max(1, min(2 * slots, self._config.gateway.max_requests, len(self._todo)))

    def _deliver(self, outcome: Outcome) -> None:
        self._results.write(outcome)
        self._tally.add(outcome)
        self._progress.update(self._bar, advance=1, tokens=self._tally.tokens)
        if self._sabotage is not None:
            self._sabotage.progress(self._tally.done)

    def _close(self) -> int:
        if self._status is None:
            done = self._tally.done
            print(f"interrupted: {done} of {len(self._todo)} done; run again to continue")
            return _INTERRUPTED
        Console().print(contributions(self._status))
        print(closing_line(self._tally, self._seconds))
        if self._sabotage is not None:
            print(aftermath(self._status))
        return 1 if self._tally.failed else 0
