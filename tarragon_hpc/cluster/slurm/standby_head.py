"""Keeps a standby head waiting on another node than the head's, as a step that takes no slot."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.node import node_name
from tarragon_hpc.cluster.processes import start_free
from tarragon_hpc.cluster.slurm.commands import plain_environment
from tarragon_hpc.cluster.slurm.steps import side_step, step_environment
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from tarragon_hpc.cluster.slurm.allocation import Allocation
    from tarragon_hpc.config import SlurmConfig

NAME = "standby-head"

_LOOK_S = 5.0
_PAUSE_S = 30.0
"""From one attempt to the next: it imports for a while before it is heard of."""

log = logging.getLogger(__name__)


def place_for(allocation: Allocation, own: str, avoid: Collection[str]) -> tuple[int, str] | None:
    """A component and a node of it for a standby: not the head's own, in the head's component if
    there is one. None: there is no other node. Pure.
    """
    for part, nodes in enumerate(allocation.nodes):
        for node in nodes:
            if node != own and node not in avoid:
                return part, node
    return None


def command(run_dir: Path) -> list[str]:
    """What a standby runs. It writes its log itself: its srun may die with the head's node."""
    log_file = str(run_dir / "logs" / f"{NAME}.log")
    words = ["-m", "tarragon_hpc.cli", "head", str(run_dir), "--standby", "--log", log_file]
    return [sys.executable, *words]


class StandbyKeeper:
    """Starts a standby head whenever none is connected.

    allocation: the nodes as they are now; raises ClusterError. waiting: how many standby heads are
    connected. calm: whether nothing else is being started. avoid: nodes that are bad.
    """

    def __init__(
        self,
        run_dir: Path,
        slurm: SlurmConfig,
        *,
        allocation: Callable[[], Awaitable[Allocation]],
        waiting: Callable[[], int],
        calm: Callable[[], bool],
        avoid: Callable[[], Collection[str]],
    ) -> None:
        self._run_dir = run_dir
        self._slurm = slurm
        self._allocation = allocation
        self._waiting = waiting
        self._calm = calm
        self._avoid = avoid
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"StandbyKeeper({self._waiting()} connected)"

    async def keep(self) -> None:
        """For ever. The standbys outlive this head: that is what they are for."""
        loop = asyncio.get_running_loop()
        tried = float("-inf")
        while True:
            await asyncio.sleep(_LOOK_S)
            starting = self._process is not None and self._process.poll() is None
            if self._waiting() or starting or not self._calm() or loop.time() - tried < _PAUSE_S:
                continue
            tried = loop.time()
            try:
                await self._start()
            except (ClusterError, OSError) as error:
                log.warning("no standby head: %s", error)

    async def _start(self) -> None:
        allocation = await self._allocation()
        place = place_for(allocation, node_name(), self._avoid())
        if place is None:
            log.debug("no standby head: there is no other node")
            return
        argv = side_step(allocation, *place, NAME, command(self._run_dir), slurm=self._slurm)
        env = step_environment(plain_environment(), {})
        said = self._run_dir / "logs" / f"{NAME}.srun"
        self._process, pidfd = start_free(argv, env, said, pipes=False)
        asyncio.get_running_loop().add_reader(pidfd, _collect, self._process, pidfd)
        log.info("a standby head is started on %s", place[1])


def _collect(process: subprocess.Popen[bytes], pidfd: int) -> None:
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
    process.wait()
