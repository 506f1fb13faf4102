"""`generate` as a job: a head answers the requests that its run was prepared for.

The batch runs inside the head, against its own gateway. What one head has not answered the next one
does, with the same keys, so that it goes on from the tokens that are known (`generate.parts`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.head import RunInfo, run_service
from tarragon_hpc.cluster.inheritance import final_state
from tarragon_hpc.cluster.rendezvous import CONFIG, TIMELINE, open_run
from tarragon_hpc.cluster.slurm.chain import cancel_later, own_job, until_now
from tarragon_hpc.cluster.slurm.jobs import jobs_of
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.gateway.tls import own_client_context
from tarragon_hpc.generate.client import BatchClient
from tarragon_hpc.generate.final import REPORT, Report, failures_of, write_report
from tarragon_hpc.generate.inputs import read_requests
from tarragon_hpc.generate.parts import Part, begun, check_target, merge, survey
from tarragon_hpc.generate.progress import Progress
from tarragon_hpc.observe.timeline import read_timeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import NoReturn

    from tarragon_hpc.cluster.work import Work
    from tarragon_hpc.config import Config
    from tarragon_hpc.generate.inputs import Request
    from tarragon_hpc.generate.outputs import Outcome

# Its only client is here.
OWN_DOOR = ("gateway.host=127.0.0.1", "gateway.port=0")
_SYNC_S = 1.0
_SAY_S = 30.0

log = logging.getLogger(__name__)


def answer_requests(
    run_dir: Path,
    work: Work,
    head_number: int | None = None,
    on_interrupt: Callable[[], NoReturn] | None = None,
) -> int:
    """Be the head of a batch; returns the exit status. head_number, on_interrupt: `run_service`'s.

    0: every request has its final result, or the run was handed over. 1: some failed in the
    service, and can be tried again. Raises TarragonError.
    """
    config = load_config(run_dir / CONFIG, OWN_DOOR)
    requests = read_requests(work.source)
    known = frozenset(request.custom_id for request in requests)
    check_target(work.target, known)
    since = begun(run_dir)
    done, before = survey(run_dir, work.target, known)
    todo = [request for request in requests if request.custom_id not in done]
    log.info("batch: %d of %d requests are done already", len(done), len(requests))
    ended = final_state(open_run(run_dir))
    if ended is not None and (run_dir / REPORT).exists():
        log.info("run %s has ended: %s", ended.run, ended.reason)
        return 0
    with Part(run_dir) as part:
        if todo and ended is None:
            progress = Progress(len(requests), before, since, time.monotonic())
            job = _Job(config, run_dir, todo, part, progress, head_number, on_interrupt)
            try:
                asyncio.run(job.run())
            except ClusterError:
                _keep(run_dir, work, known, part)
                raise
            if job.handed_over and job.left:
                log.warning("%s; the next head goes on with it", job.said())
                return 0
        return _close(config, run_dir, work, requests, part, since)


class _Job:
    """What one head does for a batch."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        todo: list[Request],
        part: Part,
        progress: Progress,
        head_number: int | None,
        on_interrupt: Callable[[], NoReturn] | None,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._todo = todo
        self._part = part
        self._progress = progress
        self._head_number = head_number
        self._on_interrupt = on_interrupt
        self._delivered = 0
        self.handed_over = False

    async def run(self) -> None:
        """Raises ClusterError."""
        await run_service(
            self._config,
            run=self._run_dir,
            head_number=self._head_number,
            on_interrupt=self._on_interrupt,
            on_ready=self._ready,
            stop=asyncio.Event(),
            work=self._answer,
            on_handover=self._hand_over,
            more=lambda: {"batch": self._progress.plain(time.monotonic(), time.time())},
        )

    @property
    def left(self) -> int:
        """How many requests have no result."""
        return len(self._todo) - self._delivered

    def said(self) -> str:
        """How the batch is doing."""
        return self._progress.line(time.monotonic(), time.time())

    def _hand_over(self) -> None:
        self.handed_over = True
        self._progress.state = "handing over"

    def _ready(self, info: RunInfo) -> None:
        log.info("ready: %s", info.endpoint)

    async def _answer(self, info: RunInfo) -> None:
        gateway = self._config.gateway
        client = BatchClient(
            info.endpoint,
            concurrency=self._concurrency(),
            api_key=gateway.api_keys[0] if gateway.api_keys else None,
            tls=own_client_context(gateway),
            patient=True,
        )
        self._progress.begin(time.monotonic())
        watch = asyncio.create_task(self._watch(), name="batch progress")
        try:
            await client.run(self._todo, self._deliver)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        log.info("%s", self.said())

    def _concurrency(self) -> int:
        """Enough to keep every AW's batch full while answers travel, never more than is taken."""
        slots = self._config.attention.workers * self._config.attention.max_num_seqs
        return max(1, min(2 * slots, self._config.gateway.max_requests, len(self._todo)))

    def _deliver(self, outcome: Outcome) -> None:
        self._part.write(outcome)
        self._delivered += 1
        self._progress.add(outcome, time.monotonic())

    async def _watch(self) -> None:
        """Have the other nodes see the results, and the log say how it goes."""
        said = time.monotonic()
        while True:
            await asyncio.sleep(_SYNC_S)
            await asyncio.to_thread(self._part.sync)
            if time.monotonic() - said >= _SAY_S:
                said = time.monotonic()
                log.info("%s", self.said())


def _keep(run_dir: Path, work: Work, known: frozenset[str], part: Part) -> None:
    """A run that failed leaves what it has in the target, unless another head goes on with it."""
    with contextlib.suppress(Exception):  # the failure is what matters
        if not part.superseded:
            tally = merge(run_dir, work.target, known)
            log.warning("%s: %d of %d requests are done", work.target, tally.done, len(known))


def _close(
    config: Config, run_dir: Path, work: Work, requests: list[Request], part: Part, since: float
) -> int:
    known = frozenset(request.custom_id for request in requests)
    tally = merge(run_dir, work.target, known)
    report = Report(
        run=run_dir.name,
        target=work.target,
        total=len(requests),
        tally=tally,
        seconds=max(0.0, time.time() - since),
        heads=part.number,
        jobs=until_now(jobs_of(run_dir), own_job(run_dir)),
        failures=failures_of(read_timeline(run_dir / TIMELINE)),
    )
    try:
        write_report(run_dir, report)
    except OSError as error:
        raise ClusterError(f"{run_dir}: the report cannot be written: {error.strerror}") from None
    for line in report.text().splitlines():
        log.info("%s", line)
    if config.cluster.backend == "slurm":
        cancel_later(run_dir)  # it may have been submitted by a head that died
    return 0 if report.complete else 1
