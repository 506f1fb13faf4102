"""vLLM makes process groups of torch.distributed, of one process each, and every one of them
listens on a TCP port for the others, which there are not. Anybody could connect, and what gloo has
accepted it keeps: a stranger could use up the descriptors of an AW.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """What begins to listen on TCP in this process meanwhile no longer does afterwards."""
    before = listeners()
    try:
        yield
    finally:
        stop_listening(listeners() - before)


def listeners() -> set[int]:
    """Descriptors of this process on which it accepts TCP connections."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # gone already, as the listing's own is
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    inet = sock.family in (socket.AF_INET, socket.AF_INET6)
                    if inet and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found.add(int(name))
    return found


def stop_listening(fds: set[int]) -> None:
    """Close the sockets but not the descriptors, whose owners know nothing of it and will close
    them one day; what is there instead never has anything to tell.
    """
    with open(os.devnull, "rb") as mute:
        for fd in fds:
            os.dup2(mute.fileno(), fd, inheritable=False)
