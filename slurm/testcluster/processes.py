"""Processes of this machine as /proc shows them: whose they are, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PROC = Path("/proc")


def parents() -> dict[int, int]:
    """Parent of every live process; the dead that wait for their parent are left out."""
    found = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                rest = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if rest[0] not in "ZX":
                found[int(entry.name)] = int(rest[1])
    return found


def descendants(roots: Iterable[int]) -> set[int]:
    """These processes that live, and all below them."""
    tree = parents()
    found = {pid for pid in roots if pid in tree}
    while new := {pid for pid, parent in tree.items() if parent in found} - found:
        found |= new
    return found


def started(pid: int) -> str | None:
    """When a live process began, in the kernel's ticks: tells it from a later one of its number."""
    try:
        rest = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if rest[0] in "ZX" else rest[19]


def command(pid: int) -> list[str]:
    """Its command line; empty if there is none."""
    return _words(pid, "cmdline")


def holders(path: Path) -> set[int]:
    """Processes that have a file open."""
    wanted, found = str(path), set()
    for pid in parents():
        try:
            if any(os.readlink(fd) == wanted for fd in (_PROC / str(pid) / "fd").iterdir()):
                found.add(pid)
        except OSError:
            continue
    return found


def with_environment(setting: str) -> set[int]:
    """Processes that were started with a certain NAME=value."""
    return {pid for pid in parents() if setting in _words(pid, "environ")}


def alive(pids: Iterable[int]) -> set[int]:
    """Those of them that live."""
    return set(pids) & parents().keys()


def stop_all(find: Callable[[], set[int]]) -> None:
    """SIGSTOP whatever is found, until nothing more is. Never this process, nor those above it."""
    stopped = {1, *_above(os.getpid())}
    while new := find() - stopped:
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= new


def kill_all(find: Callable[[], set[int]], *, limit_s: float = 20.0) -> None:
    """SIGKILL whatever is found, until nothing is. Never this process, nor those above it."""
    spared = {1, *_above(os.getpid())}
    deadline = time.monotonic() + limit_s
    while rest := find() - spared:
        for pid in rest:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes that do not end: {sorted(rest)}")
        time.sleep(0.05)


def _above(pid: int) -> set[int]:
    tree, found = parents(), set()
    while pid and pid not in found:
        found.add(pid)
        pid = tree.get(pid, 0)
    return found


def _words(pid: int, what: str) -> list[str]:
    try:
        return (_PROC / str(pid) / what).read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
