"""What a worker process knows of its run and its place in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tarragon_hpc.config import Config, DetectionConfig
    from tarragon_hpc.wire.seeking import Seek


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker process knows when its role's `main(context)` is called.

    `runtime_dir` is on this node, private to the user and short enough for Unix sockets; it is
    removed at the end of the run. `cpus` has been applied to the process already; None: unbound.
    `shares_cpus`: AWs and EWs compute on the same ones. `publish` leaves word in the run directory
    before the head is called, with the address that it will be given. `tls`: of the control
    connection. step, node: of Slurm, empty without. `head_number`: the how-manieth of the run it
    is. `seek`: how to find the next one; None: the worker ends with its head.
    """

    worker: str
    incarnation: int
    config: Config
    run_dir: Path
    secret: bytes = field(repr=False)
    head: tuple[str, int]
    runtime_dir: Path
    cpus: tuple[int, ...] | None
    shares_cpus: bool = False
    publish: Callable[[Mapping[str, str]], None] = lambda address: None
    tls: ssl.SSLContext | None = None
    step: str = ""
    node: str = ""
    head_number: int = 0
    seek: Seek | None = None


def lease_s(detection: DetectionConfig) -> float:
    """How long a worker may serve that is cut off from its head: until that gives its place away.

    A head that is stopped is not a reason to leave, as long as its host answers.
    """
    return detection.heartbeat_ms * detection.heartbeat_misses / 1000 + detection.stopped_grace_s
