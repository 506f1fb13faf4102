"""Why a run's head ends, and what is done before: an ordinary stop, or a handover.

A *stop* ends the run. A *handover* ends this head and its workers only: the time limit of the job
is near, or the job is being taken away. The run is left as one that another head can go on with (a
successor job, `tarragon resume`): nobody's requests are given up that can be gone on with.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from tarragon_hpc.config import ClusterConfig

# Of what is left until the time limit, at least: for KV to be saved,
SAVE_S = 15.0
# and then for the workers to leave, and for Slurm to be early.
LEAVE_S = 15.0
# A job that is taken away has KillWait (30 s by default, but whatever the site says) to live, and
# its workers wait for `wire.notice.NOTICE_S` only.
HASTY_DRAIN_S = 2.0
HASTY_SAVE_S = 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a signal asks for. drain_s: for running requests; None: as configured. save_s: after
    that, for what the stores keep of the others.
    """

    reason: str
    handover: bool = False
    drain_s: float | None = None
    save_s: float = HASTY_SAVE_S


def meaning(number: int, cluster: ClusterConfig) -> Wish:
    """What the head does on a signal. Pure."""
    if number == signal.SIGUSR2:
        left = cluster.slurm.signal_s - LEAVE_S
        drain_s = min(cluster.drain_timeout_s, max(0.0, left - SAVE_S))
        save_s = max(HASTY_SAVE_S, left - drain_s)
        return Wish("the job's time limit is near", True, drain_s, save_s)
    if number == signal.SIGTERM and cluster.backend == "slurm":
        reason = "the job is being ended (SIGTERM: preemption, scancel or its time limit)"
        return Wish(reason, True, min(cluster.drain_timeout_s, HASTY_DRAIN_S))
    return Wish("the head was told to stop")


class Ending:
    """Who wants the head to end, why, and how much time running requests are given.

    stop: it should end. hurry: without waiting for anybody. ended: no worker is left. handover:
    the run is to go on elsewhere.
    """

    def __init__(self, stop: asyncio.Event, cluster: ClusterConfig) -> None:
        self.stop = stop
        self.hurry = asyncio.Event()
        self.ended = asyncio.Event()
        self.drain_s = cluster.drain_timeout_s
        self.save_s = HASTY_SAVE_S
        self.reason = "the head was told to stop"
        self.handover = False
        self._cluster = cluster

    def __repr__(self) -> str:
        state = "ended" if self.ended.is_set() else "ending" if self.stop.is_set() else "not yet"
        return f"Ending({state}, {self.reason})"

    def signalled(self, number: int) -> None:
        """The first signal ends the head, the next one does not wait for running requests.

        That the time limit is near changes nothing if it is ending already.
        """
        wish = meaning(number, self._cluster)
        if not self.stop.is_set():
            self._begin(wish)
        elif number != signal.SIGUSR2:
            self.hurry.set()

    def hand_over(self, reason: str) -> None:
        """The job is being taken away, as its workers say."""
        if not self.stop.is_set():
            self._begin(Wish(reason, True, min(self._cluster.drain_timeout_s, HASTY_DRAIN_S)))

    async def ask(self, drain_s: float) -> None:
        """Stop on a client's behalf; returns when no worker is left."""
        if not self.stop.is_set():
            self._begin(Wish("a client asked for it", drain_s=drain_s))
        await self.ended.wait()

    def _begin(self, wish: Wish) -> None:
        self.reason, self.handover, self.save_s = wish.reason, wish.handover, wish.save_s
        if wish.drain_s is not None:
            self.drain_s = wish.drain_s
        self.stop.set()


@contextlib.contextmanager
def signals(ending: Ending, on_interrupt: Callable[[], NoReturn] | None = None) -> Iterator[None]:
    """Have the usual signals end the head; not outside the main thread, where none arrive.

    on_interrupt: what those of a terminal, and SIGTERM, do instead.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    wanted = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    for number in wanted:
        if on_interrupt is not None and number != signal.SIGUSR2:
            loop.add_signal_handler(number, on_interrupt)
        else:
            loop.add_signal_handler(number, ending.signalled, number)
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)
