"""A process that has done the imports of a role and forks its workers, each within milliseconds.

    python -m tarragon_hpc.cluster.forkserver --role aw --run-dir DIR --parent PID --socket FD

The head sends an `Order` with two descriptors, the worker's lifeline and its log. The worker is
forked twice and so becomes a child of the head (`lifeline.adopt_orphans`), which waits for it like
for any other; what becomes of this process does not matter to it. When it is that far it says so:
the first bytes on its lifeline are its pid. If anything goes wrong before, the lifeline ends
without a word, and the head starts a plain process instead.

A fork takes along one thread only, and a CUDA that was initialised is useless after it. So this
process refuses to serve if the imports started threads or opened a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

import msgspec

from tarragon_hpc.cluster import entry
from tarragon_hpc.cluster.lifeline import die_with
from tarragon_hpc.cluster.preload import become, preload, settle
from tarragon_hpc.errors import FrameError
from tarragon_hpc.ids import Role
from tarragon_hpc.observe.log import configure
from tarragon_hpc.transport.unix import close_all, receive_frame

if TYPE_CHECKING:
    from collections.abc import Iterable

READY = b"ready"
PID_BYTES = 4

_RECEIVE_S = 5.0

log = logging.getLogger("tarragon_hpc.cluster.forkserver")  # also when it runs as __main__


class Order(msgspec.Struct, frozen=True):
    """One worker: the arguments of `entry.main` without the lifeline, and what differs in its
    environment from the one that this process was started with (None: not set).
    """

    parent: int
    name: str
    arguments: list[str]
    env: dict[str, str | None]


def main(argv: list[str] | None = None) -> NoReturn:
    """Import, serve until the head closes the socket; a worker comes out of it as well."""
    parser = argparse.ArgumentParser(prog="tarragon_hpc.cluster.forkserver")
    parser.add_argument("--role", required=True, type=Role, choices=list(entry.MAIN))
    parser.add_argument("--run-dir", required=True, help="names its run and its workers' in `ps`")
    parser.add_argument("--parent", required=True, type=int, help="pid to die with")
    parser.add_argument("--socket", required=True, type=int, help="descriptor for orders")
    args = parser.parse_args(argv)
    die_with(args.parent)
    configure(f"forkserver-{args.role}")
    with socket.socket(fileno=args.socket) as sock:
        began = time.monotonic()
        preload([args.role])
        reason = unfit(len(os.listdir("/proc/self/task")), _open_files())
        if reason is not None:
            log.warning("workers are started without a fork server: %s", reason)
            entry.leave(1)
        settle()
        log.info("ready after %.2f s", time.monotonic() - began)
        sock.sendall(READY)
        arguments = _serve(sock)
    entry.leave(0 if arguments is None else _work(arguments))


def unfit(threads: int, files: Iterable[str]) -> str | None:
    """Why a process with so many threads and these open files must not be forked, or None."""
    if threads > 1:
        return f"the imports started {threads - 1} threads"
    devices = [file for file in files if file.startswith(("/dev/nvidia", "/dev/kfd"))]
    return f"the imports opened {devices[0]}" if devices else None


def _open_files() -> list[str]:
    files = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            files.append(os.readlink(f"/proc/self/fd/{fd}"))
    return files


def _serve(sock: socket.socket) -> list[str] | None:
    """Fork as told; returns the arguments in a worker, None when the head is gone."""
    while True:
        sock.settimeout(None)
        if not sock.recv(1, socket.MSG_PEEK):
            return None
        try:
            body, fds = receive_frame(sock, 2, time.monotonic() + _RECEIVE_S)
        except (OSError, FrameError):
            return None
        try:
            order = msgspec.msgpack.decode(body, type=Order)
            lifeline, output = fds
            arguments = _fork(sock, order, lifeline, output)
        except OSError as error:
            log.error("cannot fork %s: %s", order.name, error.strerror)
            arguments = None
        if arguments is not None:
            return arguments
        close_all(fds)


def _fork(sock: socket.socket, order: Order, lifeline: int, output: int) -> list[str] | None:
    """The worker's arguments in the worker, None in this process."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return None
    try:
        middle = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == middle:  # until the head has it
            time.sleep(0.0002)
        if os.getppid() != order.parent:
            os._exit(1)
        sock.close()
        _settle(order, output)
        os.write(lifeline, os.getpid().to_bytes(PID_BYTES, "little"))
    except BaseException:  # noqa: BLE001 - there must never be two that serve
        traceback.print_exc()
        os._exit(1)
    return [*order.arguments, "--lifeline", str(lifeline)]


def _settle(order: Order, output: int) -> None:
    """Make of a copy of this process what a fresh one would be."""
    os.setsid()
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(output)
    become(order.name, order.env)


def _work(arguments: list[str]) -> int:
    """Run the worker; returns its exit status, as a fresh interpreter would."""
    try:
        return entry.main(arguments)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - shown, like the interpreter does
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    main()
