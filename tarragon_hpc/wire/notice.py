"""SIGTERM in a worker: from its own host it means "leave"; from Slurm, "you will be killed soon".

Under Slurm that may be the beginning of a preemption, or the end of the job, and only the workers
hear of it (scancel of a single step kills at once). So a worker says so to the head, which moves
its work away or hands the run over, and serves on until it is told to leave. If the head says
nothing it leaves by itself.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tarragon_hpc.wire.to_head import Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.wire.common import Message
    from tarragon_hpc.wire.link import WorkerContext

# KillWait is 30 s unless the site says otherwise; who leaves before it is killed loses nothing.
NOTICE_S = 10


class Terminator:
    """Handles SIGTERM; `install` in the main thread.

    send: queues a message for the head, also from a signal handler. leave: begins to leave, in the
    main thread. told: whether the head has told the worker to leave: then SIGTERM means it.
    """

    def __init__(
        self,
        context: WorkerContext,
        send: Callable[[Message], None],
        leave: Callable[[], None],
        told: Callable[[], bool],
    ) -> None:
        self._who = (context.worker, context.incarnation)
        self._patient = context.config.cluster.backend == "slurm"
        self._send = send
        self._leave = leave
        self._told = told

    def __repr__(self) -> str:
        return f"Terminator({'patient' if self._patient else 'leaves at once'})"

    def install(self) -> None:
        """From now on; the second SIGTERM is not waited after either."""
        signal.signal(signal.SIGTERM, self._on_signal)
        if self._patient:
            signal.signal(signal.SIGALRM, lambda *_: self._leave())

    def _on_signal(self, *_: object) -> None:
        if not self._patient or self._told():
            self._leave()
            return
        self._patient = False
        self._send(Notice(*self._who, "SIGTERM"))
        signal.alarm(NOTICE_S)  # a timer of the process: starting a thread here could lock up
