"""Die with the parent, and let the parent know at once: the ties between a worker and its head."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import threading

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_FILES = 0x400  # unshare(2)

log = logging.getLogger(__name__)


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when process `parent` ends.

    Without a race: a parent that died before the request was made is noticed by its changed pid,
    and this process then ends here. Call it in the main thread, before any other work.
    Raises OSError if the kernel refuses.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans(adopt: bool = True) -> None:
    """From now on descendants of this process whose parent has ended become its own children.

    False: no more. Raises OSError if the kernel refuses.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, adopt)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def hold(fd: int) -> None:
    """Keep a socket open until this process begins to end; the peer then sees the end of file.

    A dying process gives back its memory before it closes its files, and becomes a zombie (what a
    pidfd tells) after that: tens to hundreds of milliseconds for an engine. So the socket goes to
    a thread with a file table of its own (unshare(2), CLONE_FILES), which holds nothing else and
    dies within a millisecond of the signal. The socket is closed for the rest of the process.
    Call it before other files are open. Where the kernel refuses, the socket stays where it is,
    and its end comes as late as that of all others.
    """
    moved = threading.Event()
    refused: list[int] = []

    def keep() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_FILES) != 0:
            refused.append(ctypes.get_errno())
            moved.set()
            return
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        os.closerange(0, fd)
        os.closerange(fd + 1, most if most != resource.RLIM_INFINITY else 1 << 20)
        moved.set()
        os.read(fd, 1)  # for ever: nothing is ever sent

    threading.Thread(target=keep, name="lifeline", daemon=True).start()
    moved.wait()
    if refused:
        log.warning("unshare(CLONE_FILES): %s; a death is seen later", os.strerror(refused[0]))
    else:
        os.close(fd)
