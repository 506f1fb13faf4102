"""The private directory for sockets of a run's workers on one node.

On the head's node it is the head's, if that has one. On every other the workers of the run share
one of their own, whose name follows from the run and the node's kernel. Each holds a shared lock in
it, which the kernel gives back however the process ends. So whoever gets that lock for itself alone
knows that nobody lives there, and removes the directory: the last one that leaves in good order,
or, after deaths, the next worker of any run of the same user that makes itself a directory on this
node.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConfigError
from tarragon_hpc.transport.interfaces import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarragon_hpc.cluster.records import HeadRecord

_NAME = re.compile(r"tarragon-([0-9a-f]{12})-([0-9a-f]{8})(?:\.[0-9a-f]{8}\.gone)?")
_LOCK = "lock"
_SWEPT = 64  # leftovers that one start looks at


@contextlib.contextmanager
def socket_directory(head: HeadRecord) -> Iterator[Path]:
    """Where a worker of this head's run has its sockets on this node, for as long as it lives.

    Raises ConfigError if somebody else's directory is in the way.
    """
    own = boot_id()
    theirs = Path(head.runtime_dir)
    if head.runtime_dir and head.boot_id == own and _is_private(theirs):
        yield theirs
        return
    root = Path(tempfile.gettempdir())
    path = root / f"tarragon-{head.nonce}-{own[:8]}"
    sweep(root, own)
    lock = _enter(path)
    try:
        yield path
    finally:
        os.close(lock)
        _remove_if_empty_of_life(path)


def sweep(root: Path, boot: str) -> int:
    """Remove directories of this user in which no process lives any more; returns how many.

    Those of another kernel stay: on a filesystem of several nodes somebody may live there.
    """
    try:
        names = os.listdir(root)
    except OSError:
        return 0  # some sites let nobody list it
    matches = (_NAME.fullmatch(name) for name in names)
    ours = [root / m[0] for m in matches if m is not None and m[2] == boot[:8]]
    return sum(_remove_if_empty_of_life(path) for path in ours[:_SWEPT] if _is_private(path))


def _is_private(path: Path) -> bool:
    try:
        return _is_private_directory(os.lstat(path))
    except OSError:
        return False


def _is_private_directory(info: os.stat_result) -> bool:
    others = info.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not others


def _enter(path: Path) -> int:
    """Make the directory if need be and share its lock; returns the lock's descriptor."""
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
        except OSError as error:
            raise ConfigError(str(path), f"cannot be made: {error.strerror}") from None
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            continue  # just removed by the last one of before
        if not _is_private_directory(info):
            raise ConfigError(str(path), "must be a directory of yours with mode 0700")
        with contextlib.ExitStack() as stack:
            try:
                lock = _open_lock(path)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_SH)
                if _is_lock_of(lock, path):
                    stack.pop_all()
                    return lock
            except FileNotFoundError:
                pass  # likewise
            except OSError as error:
                raise ConfigError(str(path), f"cannot be locked: {error.strerror}") from None


def _open_lock(path: Path) -> int:
    return os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_lock_of(lock: int, path: Path) -> bool:
    """Whether the directory is still the one that had this lock."""
    return os.path.samestat(os.fstat(lock), os.stat(path / _LOCK))


def _remove_if_empty_of_life(path: Path) -> bool:
    try:
        lock = _open_lock(path)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_lock_of(lock, path):
            return False
        # Moved away first: who comes now makes a new one.
        gone = path.with_name(f"{path.name.partition('.')[0]}.{secrets.token_hex(4)}.gone")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    except OSError:
        return False  # somebody lives there, or has just done the same
    finally:
        os.close(lock)
    return True
