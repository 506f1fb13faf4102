"""Memory that two processes share without a name (memfd_create(2), fcntl(2) "File Sealing").

The owner creates it and passes the descriptor over a Unix socket. Nothing appears in /dev/shm, no
other user can open it, and the kernel frees it with the last process that maps it, however that
dies. The size is sealed, so that no peer can shrink it under us (SIGBUS).
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.errors import ConfigError, ConnectFailed

if TYPE_CHECKING:
    from tarragon_hpc.transport.base import Geometry

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def require_native() -> None:
    """Raises ConfigError where the compiled module is missing: shm cannot do without atomics."""
    if native.reason is not None:
        raise ConfigError("transport.kind", f"shm needs the compiled module ({native.reason})")


def create_memory(name: str, nbytes: int) -> tuple[int, memoryview]:
    """Zeroed, sealed memory: its descriptor (the caller closes it) and its mapping.

    Pages are taken when they are first touched. Raises OSError.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return fd, native.module.map_shared(fd, nbytes)
    except BaseException:
        os.close(fd)
        raise


def own_memory(name: str, nbytes: int) -> memoryview:
    """Memory as `create_memory` makes it, for this process alone. Raises OSError."""
    fd, view = create_memory(name, nbytes)
    os.close(fd)
    return view


def own_rings(peer: str, g: Geometry) -> tuple[memoryview, memoryview]:
    """This end's copies of the rings of requests and of replies. Raises OSError."""
    requests, replies = (
        own_memory(f"tarragon-{peer}", native.module.ring_bytes(g.slots, nbytes))
        for nbytes in (g.request_bytes, g.reply_bytes)
    )
    return requests, replies


def adopt_memory(fd: int, nbytes: int) -> memoryview:
    """Map memory a peer created, if it is what was agreed on. The caller still closes `fd`.

    Raises ConnectFailed if the descriptor is no memfd, is not sealed, or has another size.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        size = os.fstat(fd).st_size
        if seals & _SEALS != _SEALS:
            raise ConnectFailed("the peer's memory is not sealed")
        if size != nbytes:
            raise ConnectFailed(f"expected memory of {nbytes} bytes, got {size}")
        return native.module.map_shared(fd, nbytes)
    except OSError as error:
        raise ConnectFailed(f"the peer's memory cannot be used: {error.strerror}") from None
