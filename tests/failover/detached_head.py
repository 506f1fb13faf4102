"""A head in a process of its own whose workers, like steps of Slurm, do not die with it.

    python detached_head.py RUN FAKE [FAULT]              be the head
    python detached_head.py RUN FAKE FAULT --standby S    once there is none, after S seconds
    python detached_head.py RUN FAKE FAULT --supervise    start it, and the next one if it dies

FAKE is the program of the workers; "-": the real ones. They are started through the real entry,
without a parent. Every start is a line in starts.txt of the run directory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

from tarragon_hpc.cluster import assemble, supervisor
from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.launching import make_places
from tarragon_hpc.cluster.local import log_path
from tarragon_hpc.cluster.rendezvous import WORKERS, run_nonce, run_secret
from tarragon_hpc.cluster.roster import Roster, look

RUN, FAKE = Path(sys.argv[1]), sys.argv[2]
FAULT = sys.argv[3] if len(sys.argv) > 3 else ""


class Detached:
    """Processes that outlive their launcher; those of an earlier one are found by their records."""

    def __init__(self, specs, orchestrator) -> None:
        self._specs = specs
        self._orchestrator = orchestrator
        self._pids = {}

    def start(self, who):
        spec = self._specs[who.worker]
        with (RUN / "starts.txt").open("a") as starts:
            starts.write(f"{who}\n")
        with log_path(RUN, who).open("ab") as output:
            process = subprocess.Popen(
                [*spec.program, *spec.arguments(who, RUN)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **spec.env},
                start_new_session=True,
            )
        self._pids[who] = process.pid
        asyncio.get_running_loop().add_reader(os.pidfd_open(process.pid), self._reap, who, process)
        return process.pid

    def _reap(self, who, process) -> None:
        if process.poll() is not None and self._pids.pop(who, None) is not None:
            self._orchestrator().exited(who, process.returncode)

    def stop(self, who, grace_s) -> None:
        asyncio.get_running_loop().call_later(grace_s, self.kill, who)

    def kill(self, who) -> None:
        if who in self._pids:
            try:
                os.kill(self._pids[who], signal.SIGKILL)
            except ProcessLookupError:
                self._gone(who)

    def adopt(self, who, step, node, job) -> bool:
        roster, directory = Roster(run_nonce(run_secret(RUN))), Directory(RUN).under(WORKERS)
        look(directory, roster, [name for name in directory.names() if name == f"{who}.json"])
        if who.worker not in roster.records:
            return False
        self._pids[who] = pid = roster.records[who.worker].pid
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._gone, who)
        else:
            asyncio.get_running_loop().add_reader(pidfd, self._left, who, pidfd)
        return True

    def _left(self, who, pidfd) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        self._gone(who)

    def _gone(self, who) -> None:
        if self._pids.pop(who, None) is not None:
            self._orchestrator().exited(who, -signal.SIGKILL)

    def detach(self) -> None:
        self._pids.clear()

    async def close(self) -> None:
        for who in list(self._pids):
            self.kill(who)


def fake_places(config):
    places = make_places(config)
    if FAKE == "-":
        return places
    for worker, spec in places.items():
        places[worker] = dataclasses.replace(spec, program=(sys.executable, FAKE, FAULT))
    return places


async def make_launcher(config, run_dir, places, orchestrator, tell):
    return Detached(places, orchestrator)


if __name__ == "__main__":
    from tarragon_hpc.cli.head import be_head
    from tarragon_hpc.observe.log import configure

    if "--supervise" in sys.argv:
        configure("supervisor")
        me = [sys.executable, *sys.argv[:3], FAULT]
        again = ["--standby", "0"]
        sys.exit(supervisor.Supervisor(lambda late: [*me, *(again if late else [])]).run())
    assemble.make_places = fake_places
    assemble.make_launcher = make_launcher
    standby = "--standby" in sys.argv
    sys.exit(be_head(str(RUN), standby=standby, patience_s=float(sys.argv[-1]) if standby else 0))
