"""What other threads and signals leave for the AW's main thread."""

from __future__ import annotations

import queue
import signal
import threading
from typing import TYPE_CHECKING

from tarragon_hpc.wire.to_worker import Drain, Shutdown, ToWorker, Welcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.attention.found import Mail


class Interrupted(BaseException):
    """The start was ended by a wish to leave; not an Exception, so that nobody else handles it."""


class Mailbox:
    """Messages for the main thread, which reads them between steps.

    `ring` is called for every message, from the control thread: the main thread may be waiting in
    the middle of a step, for a routing table. While `starting`, the main thread builds the engine,
    for seconds or minutes: a wish to leave then raises Interrupted there instead of waiting.
    `told`: the head wants the worker to leave.
    """

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[Mail] = queue.SimpleQueue()
        self.starting = True
        self.told = False
        self.ring: Callable[[], None] = lambda: None

    def put(self, message: ToWorker) -> None:
        """In the control thread."""
        self.messages.put(message)
        self.ring()
        self.told = self.told or isinstance(message, Drain | Shutdown)
        if self.starting and isinstance(message, Drain | Shutdown):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def leave(self) -> None:
        """SIGTERM. In the main thread, between any two of its instructions: SimpleQueue allows for
        that.
        """
        self.messages.put(Drain("SIGTERM"))
        if self.starting:
            raise Interrupted

    def wait_for_welcome(self) -> None:
        """Until the head has let this worker in. A worker gets nothing else before."""
        while not isinstance(self.messages.get(), Welcome):
            pass
