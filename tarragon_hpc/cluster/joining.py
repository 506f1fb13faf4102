"""How a worker finds the head through the run directory, and takes its place in it.

It costs a worker eight operations there if the head has written its record before: list the
directory, read record, secret and configuration, create the claim, and write the own record (three
of them); every look that comes too early is one more.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import tenacity

from tarragon_hpc.cluster import node
from tarragon_hpc.cluster.certificate import run_tls
from tarragon_hpc.cluster.directory import said
from tarragon_hpc.cluster.records import WorkerRecord, encode
from tarragon_hpc.cluster.rendezvous import (
    CONFIG,
    SECRET,
    WORKERS,
    list_run,
    newest_head,
    run_nonce,
)
from tarragon_hpc.config import load_config
from tarragon_hpc.config.schema import ClusterConfig
from tarragon_hpc.errors import Claimed, ClusterError, RecordError
from tarragon_hpc.ids import parse_worker_id
from tarragon_hpc.transport.interfaces import boot_id
from tarragon_hpc.wire.auth import read_secret
from tarragon_hpc.wire.seeking import HeadPlace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.cluster.directory import Directory
    from tarragon_hpc.cluster.records import HeadRecord
    from tarragon_hpc.config import Config
    from tarragon_hpc.ids import Incarnation

_SOONEST_S = 0.05
_LATEST_S = 2.0
_CLAIM_BYTES = 200
_HOLDER_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What the run directory says."""

    head: HeadRecord
    config: Config
    secret: bytes = field(repr=False)

    @property
    def nonce(self) -> str:
        """Of the run."""
        return run_nonce(self.secret)


class _Search:
    """Looks for the head's record; what has been read stays."""

    def __init__(self, run: Directory) -> None:
        self._run = run
        self._config: Config | None = None
        self._secret: bytes | None = None
        self._began = time.monotonic()

    @property
    def limit_s(self) -> float:
        """How long all looks together may take; the default until the configuration is there."""
        cluster = ClusterConfig() if self._config is None else self._config.cluster
        return cluster.start_timeout_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._began + self.limit_s - time.monotonic())

    def look(self) -> Found:
        """Raises ClusterError if it is not there yet, ConfigError if it never will be."""
        names = list_run(self._run)
        if self._config is None and CONFIG in names:
            self._config = load_config(self._run.lend(CONFIG))
        head = newest_head(self._run, names, self._read_secret)
        if self._config is None:
            raise ClusterError(f"{self._run.path}: {CONFIG} is missing")
        return Found(head, self._config, self._read_secret())

    def _read_secret(self) -> bytes:
        if self._secret is None:
            self._secret = read_secret(self._run.lend(SECRET))
        return self._secret


def find_head(run: Directory) -> Found:
    """Wait until a head has written where it listens, for `cluster.start_timeout_s` at most.

    The pauses grow from 0.05 to 2 s and are random, so that a thousand waiting workers do not ask
    at once. Raises ClusterError with what was seen last, ConfigError about files that are wrong.
    """
    search = _Search(run)
    pause = tenacity.wait_random_exponential(multiplier=2 * _SOONEST_S, max=_LATEST_S)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ClusterError),
        wait=lambda state: min(max(_SOONEST_S, pause(state)), search.left_s),
        stop=lambda _: search.left_s == 0,
        before_sleep=_tell,
        reraise=True,
    )
    try:
        return retrying(search.look)
    except ClusterError as error:
        raise ClusterError(f"no head within {search.limit_s:g} s: {error}") from None


def seek_head(run: Directory, secret: bytes) -> HeadPlace:
    """Where the newest head listens, for a worker that has lost its own. One look.

    Raises ClusterError or ConfigError if that cannot be seen.
    """
    head = newest_head(run, list_run(run), lambda: secret)
    tls = run_tls(run.path)
    return HeadPlace(head.incarnation, head.control_host, head.control_port, tls)


def claim(run: Directory, who: Incarnation) -> None:
    """Become the one process that is this incarnation. Raises Claimed if another one is, and
    ClusterError if the claim cannot be written.
    """
    workers = run.under(WORKERS)
    name = f"{who}.claim"
    try:
        if workers.claim(name, f"pid {os.getpid()} on {socket.gethostname()}"):
            return
        holder = _holder(workers, name)
    except OSError as error:
        raise ClusterError(f"{workers.path / name}: cannot be written: {said(error)}") from None
    raise Claimed(f"{who} is another process already ({holder}); no incarnation is used twice")


def _holder(workers: Directory, name: str) -> str:
    """Who has made a claim: that is written a moment later, or not at all on a full disk."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda text: not text),
        wait=tenacity.wait_fixed(_SOONEST_S),
        stop=tenacity.stop_after_delay(_HOLDER_S),
        retry_error_callback=lambda _: b"",
    )
    text = retrying(workers.read, name, _CLAIM_BYTES)
    return text.decode(errors="replace") or "unknown"


def publish(run: Directory, who: Incarnation, nonce: str, address: Mapping[str, str]) -> None:
    """Leave word of where this worker is and what address it will give to the head.

    Nobody waits for it: if it cannot be written there is a warning.
    """
    record = WorkerRecord(
        nonce=nonce,
        role=parse_worker_id(who.worker)[0],
        worker=who.worker,
        incarnation=who.number,
        host=socket.gethostname(),
        boot_id=boot_id(),
        interfaces=node.interfaces(),
        address=dict(address),
        pid=os.getpid(),
        step=node.step_id(),
    )
    workers = run.under(WORKERS)
    try:
        workers.write(f"{who}.json", encode(record), durable=False)
    except (OSError, RecordError) as error:
        why = said(error) if isinstance(error, OSError) else str(error)
        log.warning("%s/%s.json: cannot be written: %s", workers.path, who, why)


def _tell(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome is not None:
        log.info("waiting for the head: %s", state.outcome.exception())
