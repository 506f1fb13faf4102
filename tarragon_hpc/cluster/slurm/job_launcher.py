"""Workers as jobs of their own: submit, follow through the queue, end.

The batch process of such a job is the worker. What the queue says comes late; that a worker is
there, or is no more, its own connection to the head tells at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.slurm.commands import SlurmError, show_job
from tarragon_hpc.cluster.slurm.job_ends import Stage, Verdict, exit_words, judge
from tarragon_hpc.cluster.slurm.own_job import OwnJob
from tarragon_hpc.cluster.slurm.worker_submit import cancel, submit
from tarragon_hpc.errors import ClusterError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping
    from pathlib import Path

    from tarragon_hpc.cluster.slurm.own_job import Told
    from tarragon_hpc.cluster.slurm.watch import QueueWatch
    from tarragon_hpc.cluster.spec import WorkerSpec
    from tarragon_hpc.config import Config
    from tarragon_hpc.ids import Incarnation

_AT_A_TIME = 4  # sbatch processes
_FIRST_LOOK_S = 1.0
_HURRY_S = 1.0
_RETELL_S = 60.0
_GLANCE_S = 0.5
_AGAIN_S = (2.0, 5.0, 10.0, 30.0)
_CLOSE_S = 20.0
_END_S = 3.0  # of a job that was killed on a node that is well

log = logging.getLogger(__name__)


class JobLauncher:
    """Runs each worker as a job. Output goes to `<run_dir>/logs/<worker>.<incarnation>.log`.

    bad_nodes: not to be used. Jobs outlive the head; only `close` ends them.
    """

    def __init__(
        self,
        config: Config,
        specs: Mapping[str, WorkerSpec],
        run_dir: Path,
        watch: QueueWatch,
        told: Told,
        bad_nodes: Callable[[], Collection[str]],
    ) -> None:
        self._config = config
        self._specs = specs
        self._run_dir = run_dir
        self._watch = watch
        self._told = told
        self._bad_nodes = bad_nodes
        self._jobs: dict[Incarnation, OwnJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_A_TIME)

    def __repr__(self) -> str:
        return f"JobLauncher({', '.join(f'{w}: {j.job}' for w, j in self._jobs.items())})"

    def start(self, who: Incarnation) -> int | None:
        """Have a job submitted for a worker; its pid is known once it registers."""
        self._jobs[who] = job = OwnJob(who)
        self._spawn(self._live(job))
        return None

    def adopt(self, who: Incarnation, job: str) -> None:
        """Take over a worker's job that an earlier head submitted."""
        self._jobs[who] = known = OwnJob(who, job)
        self._spawn(self._live(known))

    def stop(self, who: Incarnation, grace_s: float) -> None:
        """End a worker that was asked to leave: cancelled after `grace_s`, at once if it waits."""
        job = self._jobs.get(who)
        if job is not None:
            job.hurry()
            if job.said is None or job.said[0]:
                self.kill(who)
            else:
                asyncio.get_running_loop().call_later(grace_s, self.kill, who)

    def kill(self, who: Incarnation) -> None:
        """End a worker's job at once; one that is over is ignored."""
        job = self._jobs.get(who)
        if job is not None and not job.doomed:
            job.doomed = True
            job.hurry()
            if job.job:
                self._spawn(cancel(job.job))

    @property
    def busy(self) -> bool:
        """Whether there are jobs that are not known to run."""
        return any(job.said is None or job.said[0] for job in self._jobs.values())

    def waiting(self) -> list[Incarnation]:
        """Whose jobs wait in the queue, the longest first."""
        return [who for who, job in self._jobs.items() if job.said and job.said[0]]

    def give_way(self, who: Incarnation, why: str) -> None:
        """Take a job out of the queue: there is something better."""
        job = self._jobs.get(who)
        if job is not None and not job.doomed:
            job.gives_way = why
            self.kill(who)

    def detach(self) -> None:
        """Let everything go on without this head: another one has taken over."""
        self._jobs.clear()
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Cancel all jobs; returns when they are over, or Slurm has been told so for long."""
        for who in list(self._jobs):
            self.kill(who)
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=_CLOSE_S)
            if late:
                left = ", ".join(filter(None, (job.job for job in self._jobs.values())))
                log.warning("jobs %s were cancelled, and Slurm has not said that they ended", left)
        self.detach()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, job: OwnJob) -> None:
        try:
            cause = "" if job.job else await self._submit(job)
            self._finish(job, cause or await self._follow(job))
        except Exception:
            log.exception("bug while following the job of %s", job.who)
            self._finish(job, "a bug in the head")

    def _finish(self, job: OwnJob, cause: str) -> None:
        if self._jobs.get(job.who) is job:
            del self._jobs[job.who]
            job.over.set()
            self._watch.forget(job.job)
            self._told.ended(job.who, job.gives_way or cause, job.nodes)

    async def _submit(self, job: OwnJob) -> str:
        """Returns why there is no job; nothing, if there is one. A Slurm that cannot be asked is
        waited for: that says nothing of the job.
        """
        attempt, suspects = 0, await self._suspects(job.who)
        while not job.doomed:
            again = attempt > 0
            try:
                async with self._turns:
                    job.job = await asyncio.to_thread(
                        submit,
                        self._config,
                        self._run_dir,
                        job.who,
                        self._specs[job.who.worker],
                        exclude={*self._bad_nodes(), *suspects},
                        again=again,
                    )
                break
            except UserError as error:
                if not suspects:
                    return f"its job was rejected: {error}"
                suspects = frozenset()  # it may be that without them nothing is left
            except ClusterError as error:
                log.warning("%s: %s", job.who, error)
                self._say(job, f"Slurm cannot be asked: {error}")
                await job.pause(_AGAIN_S[min(attempt, len(_AGAIN_S) - 1)])
                attempt += 1
        if not job.job:
            return "it was ended before it had a job"
        log.info("%s: job %s", job.who, job.job)
        if job.doomed:
            await cancel(job.job)
        self._say(job, "submitted")
        return ""

    async def _suspects(self, who: Incarnation) -> frozenset[str]:
        """Nodes of earlier incarnations whose jobs do not end although they are to: such a node may
        be dead, and Slurm, which does not know that for minutes, would start the next one there.
        """
        earlier = [j for w, j in self._jobs.items() if w.worker == who.worker and w != who]
        ends = [asyncio.ensure_future(j.over.wait()) for j in earlier if j.doomed]
        if ends:
            await asyncio.wait(ends, timeout=_END_S)
            for end in ends:
                end.cancel()
        left = (node for j in earlier if not j.over.is_set() for node in j.nodes)
        return frozenset(left) | self._told.doubtful()

    async def _follow(self, job: OwnJob) -> str:
        """Returns how the job ended."""
        missed = 0
        await job.pause(_FIRST_LOOK_S)
        fresh = True
        while True:
            look = await self._watch.look([job.job], fresh=fresh or job.urgent)
            there = self._told.connected(job.who)
            verdict = judge(job.job, look, missed, connected=there)
            missed, job.nodes = verdict.missed, verdict.nodes or job.nodes
            for node in verdict.blame:
                self._told.blamed(node, f"{job.who}: {verdict.reason}")
            if verdict.stage is Stage.OVER:
                return await self._over(job, verdict)
            if verdict.stage is Stage.WAITS:
                self._say(job, verdict.reason, verdict.expected_start)
            elif there or verdict.stage is Stage.RUNS:
                self._say(job, "")
            if job.doomed and verdict.stage is not Stage.ENDING:
                await cancel(job.job)  # again: the first may have come too early, or not at all
            fresh = False
            await self._rest(job)

    async def _over(self, job: OwnJob, verdict: Verdict) -> str:
        if "could not be launched" in verdict.reason:
            await cancel(job.job)
        if not verdict.exit_unknown:
            return verdict.reason
        try:
            shown = await show_job(job.job, limit_s=10)
        except SlurmError:
            return verdict.reason
        return exit_words(shown) or verdict.reason

    def _say(self, job: OwnJob, reason: str, expected_start: str = "") -> None:
        if job.said == (reason, expected_start) or self._jobs.get(job.who) is not job:
            return
        # The expected start moves at every look; what is told is written down for good.
        now, same = time.monotonic(), job.said is not None and job.said[0] == reason
        if not same or now - job.said_at > _RETELL_S:
            job.said, job.said_at = (reason, expected_start), now
            self._told.queued(job.who, job.job, reason, expected_start)

    async def _rest(self, job: OwnJob) -> None:
        """Until the next look: at once when its worker, which was there, is there no more."""
        until = time.monotonic() + (_HURRY_S if job.urgent else self._watch.poll_s)
        there = self._told.connected(job.who)
        while (left := until - time.monotonic()) > 0:
            if await job.pause(min(left, _GLANCE_S)):
                return
            if there and not self._told.connected(job.who):
                job.hurry()
            there = there or self._told.connected(job.who)
