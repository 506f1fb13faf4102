"""What a rendezvous does with a directory of a shared filesystem, and how often.

Written for what such filesystems promise and no more (NFS, Lustre, GPFS): `open` with O_EXCL
creates a file once, `rename` within a directory puts a whole file in place, a file that is opened
is seen as it was when its writer closed it. Not promised, and so not used: locks, clocks that
agree, and that a name is found as soon as it exists. A client that asks for a name too early may
go on believing that there is no such file (a negative dentry). So nobody asks for a future name:
readers list the directory, and open what the list has.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

Operations = Counter[str]
"""How often what was done to a directory: scan (list it), read (open, read, close a file), create
(with O_EXCL, and write), sync, rename, sync_dir, unlink."""

TEMPORARY = "."
"""How names begin that are not there yet: a file that is being written, or was left half-written.
"""


_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Directory:
    """A directory, by its absolute path. Everything raises OSError; nothing is retried.

    count: where operations are counted; of the directory and all that are made by `under`
    """

    def __init__(self, path: Path, count: Operations | None = None) -> None:
        self.path = path
        self.count: Operations = Counter() if count is None else count
        self._seen: set[str] = set()

    def __repr__(self) -> str:
        return f"Directory({self.path}, {self.count.total()} operations)"

    def under(self, name: str) -> Directory:
        """A directory inside this one, which counts into the same counter."""
        return Directory(self.path / name, self.count)

    def names(self) -> list[str]:
        """What is there, sorted, without what is still being written."""
        self.count["scan"] += 1
        with os.scandir(self.path) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(TEMPORARY))

    def fresh(self) -> list[str]:
        """What was not there at the last call, sorted."""
        names = set(self.names())
        fresh = sorted(names - self._seen)
        self._seen |= names
        return fresh

    def read(self, name: str, limit: int) -> bytes:
        """The first `limit` bytes of a file that a list has shown."""
        self.count["read"] += 1
        with (self.path / name).open("rb", buffering=0) as file:
            parts, size = [], 0
            while size < limit and (part := file.read(limit - size)):
                parts.append(part)
                size += len(part)
        return b"".join(parts)

    def lend(self, name: str) -> Path:
        """The path of a file that a list has shown, for somebody who reads it once."""
        self.count["read"] += 1
        return self.path / name

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Put a file in place whole or not at all, mode 0600. A name is written once.

        durable: the name, too, outlives a crash of the machine that has the disk.
        """
        temporary = self.path / f"{TEMPORARY}{name}.{secrets.token_hex(6)}"
        self._create(temporary, data)
        try:
            self.count["rename"] += 1
            os.replace(temporary, self.path / name)
        except OSError:
            self._discard(temporary)
            raise
        if durable:
            self._sync()

    def claim(self, name: str, text: str) -> bool:
        """Create a file that nobody else has created; whether it was this call that did.

        `text` is for people who wonder who it was; on a full disk it is missing.
        """
        self.count["create"] += 1
        try:
            fd = os.open(self.path / name, _CREATE, 0o600)
        except FileExistsError:
            return False
        with contextlib.suppress(OSError), open(fd, "wb", buffering=0) as file:
            file.write(text.encode())
        return True

    def _create(self, path: Path, data: bytes) -> None:
        self.count["create"] += 1
        fd = os.open(path, _CREATE, 0o600)
        try:
            with open(fd, "wb", buffering=0) as file:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                self.count["sync"] += 1
                os.fsync(fd)
        except OSError:
            self._discard(path)
            raise

    def _sync(self) -> None:
        self.count["sync_dir"] += 1
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _discard(self, path: Path) -> None:
        self.count["unlink"] += 1
        with contextlib.suppress(OSError):
            path.unlink()


def said(error: OSError) -> str:
    """An error of the system in words, without the path."""
    return error.strerror or str(error)
