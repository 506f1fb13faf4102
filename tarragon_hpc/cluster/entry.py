"""A worker process: `python -m tarragon_hpc.cluster.entry --worker aw0 --incarnation 1 …`.

Everything that must happen before heavy imports is here; then the role's `main(context)` runs in
this thread. It returns the exit status. Whoever starts one gives it an incarnation that this worker
never had before, whatever became of the last: another process with the same one ends with the
status of `Claimed`, and the run goes on with the first. With `--standby` it waits to be told which
worker it is (`standby.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from tarragon_hpc.cluster import joining, node
from tarragon_hpc.cluster.certificate import run_tls
from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.lifeline import die_with, hold
from tarragon_hpc.cluster.node_dir import socket_directory
from tarragon_hpc.errors import ConfigError, TarragonError
from tarragon_hpc.ids import Incarnation, Role, parse_worker_id
from tarragon_hpc.observe.log import configure
from tarragon_hpc.wire.link import WorkerContext

MAIN = {
    Role.AW: "tarragon_hpc.attention.worker",
    Role.EW: "tarragon_hpc.expert.worker",
    Role.CS: "tarragon_hpc.checkpoint.worker",
}

log = logging.getLogger("tarragon_hpc.cluster.entry")  # also when it runs as __main__


def main(argv: list[str] | None = None) -> int:
    """Run one worker to its end; returns the exit status (2: bad arguments or configuration)."""
    words = sys.argv[1:] if argv is None else argv
    if "--standby" in words:
        return int(importlib.import_module("tarragon_hpc.cluster.spare").main(words))
    args = _parse(words)
    if args.parent is not None:
        die_with(args.parent)
    os.umask(0o077)
    configure(f"{args.worker}.{args.incarnation}")
    if args.lifeline is not None:
        hold(args.lifeline)
    faulthandler.enable()
    try:
        if args.log is not None:
            write_to(args.log)
        role = worker_role(args.worker)
        with contextlib.ExitStack() as stack:
            context = make_context(
                args.run_dir,
                Incarnation(args.worker, args.incarnation),
                args.cpus,
                stack,
                shares_cpus=args.shares_cpus,
            )
            if context.cpus is not None:
                bind(context.cpus)
            status: int = importlib.import_module(MAIN[role]).main(context)
    except TarragonError as error:
        log.error("%s", error)
        return error.exit_status
    return status


def worker_role(worker: str) -> Role:
    """The role of a worker id. Raises ConfigError."""
    try:
        role, _ = parse_worker_id(worker)
    except ValueError as error:
        raise ConfigError("--worker", str(error)) from None
    return role


def make_context(
    run_dir: Path,
    who: Incarnation,
    cpus: tuple[int, ...] | None,
    stack: contextlib.ExitStack,
    *,
    shares_cpus: bool = False,
) -> WorkerContext:
    """Wait for the head, take this incarnation's place, gather what the run directory says.

    `stack` leaves the node's directory for sockets. Raises ConfigError or ClusterError.
    """
    run = Directory(run_dir)
    found = joining.find_head(run)
    joining.claim(run, who)
    # A local worker dies with its head.
    outlives = found.config.cluster.backend == "slurm"
    return WorkerContext(
        worker=who.worker,
        incarnation=who.number,
        config=found.config,
        run_dir=run_dir,
        secret=found.secret,
        head=(found.head.control_host, found.head.control_port),
        runtime_dir=stack.enter_context(socket_directory(found.head)),
        cpus=cpus,
        shares_cpus=shares_cpus,
        publish=functools.partial(joining.publish, run, who, found.nonce),
        tls=run_tls(run_dir, required=True) if found.config.cluster.tls else None,
        step=node.step_id(),
        node=node.node_name(),
        head_number=found.head.incarnation,
        seek=functools.partial(joining.seek_head, run, found.secret) if outlives else None,
    )


def bind(cpus: tuple[int, ...]) -> None:
    """Bind this process, and every thread it will start, to CPUs. Raises ConfigError."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        text = ",".join(map(str, cpus))
        raise ConfigError("--cpus", f"{text}: {error.strerror}; allowed: {allowed}") from None


def write_to(path: Path) -> None:
    """Append all output of this process, from now on, to a file. Raises ConfigError."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError("--log", f"{path}: cannot be written: {error.strerror}") from None
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tarragon_hpc.cluster.entry", description=__doc__)
    parser.add_argument("--worker", required=True, help="worker id, e.g. aw0")
    parser.add_argument("--incarnation", required=True, type=_positive)
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--cpus", type=_cpu_list, help="bind to these CPUs, e.g. 0,1")
    parser.add_argument(
        "--shares-cpus", action="store_true", help="AWs and EWs compute on the same CPUs"
    )
    parser.add_argument("--log", type=Path, help="append all output to this file")
    parser.add_argument("--parent", type=_positive, help="pid to die with")
    parser.add_argument("--lifeline", type=_positive, help="descriptor to hold until the end")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1, 2, …")
    return int(text)


def _cpu_list(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected CPU numbers, e.g. 0,1")
    return tuple(map(int, parts))


def leave(status: int) -> NoReturn:
    """End the process without taking the interpreter apart.

    A role's `main` has closed what matters; dismantling an engine's threads and modules takes
    seconds and can hang, and nobody is left to see it.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
