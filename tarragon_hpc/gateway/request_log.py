"""The request log: what becomes of the requests that are to survive their head.

    requests.3.jsonl      of the third head of a run, mode 0600; the lines are in `records`
    requests.3.2.jsonl    the same log, rewritten

A line is written (one `write`, no fsync) before anybody is told what it says. So nothing that a
client has seen is lost with the process. With the whole node the last seconds may be: then what is
known is a beginning of what was seen, and since every sequence has its seed it goes on alike.

The log is bounded: once it is longer than MIN_BYTES and than twice what was in it when it was last
rewritten, what is still wanted is written to a new file, and the old one is deleted when that is
on disk. A head begins its log with what it has taken over, and then deletes those before.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from typing import TYPE_CHECKING

from tarragon_hpc.gateway.records import (
    Ended,
    Forgotten,
    Kept,
    Produced,
    encode,
    merge,
    record,
    restated,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tarragon_hpc.errors import TarragonError
    from tarragon_hpc.gateway.records import Item, Line

MIN_BYTES = 16 << 20

_NAME = re.compile(r"requests\.([1-9][0-9]{0,8})(?:\.([1-9][0-9]{0,8}))?\.jsonl")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC

_log = logging.getLogger(__name__)


def log_files(directory: Path) -> list[Path]:
    """The request logs in a run directory, in the order in which they were begun."""
    found = [(m, path) for path in directory.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for *_, path in sorted((int(m[1]), int(m[2] or 1), path) for m, path in found)]


def recover(paths: Iterable[Path]) -> tuple[list[Kept], list[str]]:
    """The requests still wanted, the oldest first, and what is wrong with the logs.

    What cannot be read is left out and named.
    """
    files, wrong = [], []
    for path in paths:
        try:
            files.append((path.name, path.read_bytes()))
        except FileNotFoundError:
            pass  # deleted by its successor
        except OSError as error:
            wrong.append(f"{path.name}: cannot be read and is left out: {error.strerror or error}")
    kept, damaged = merge(files)
    return kept, wrong + damaged


class RequestLog:
    """Appends to the log of one head; a gateway without a run directory never opens it.

    If the log cannot be written, that is said once and no more is: requests are served all the
    same, but a head after this one knows only the beginning of them.
    """

    def __init__(self, min_bytes: int = MIN_BYTES) -> None:
        self._min_bytes = min_bytes
        self._live: dict[str, Kept] = {}
        self._places: dict[str, tuple[Kept, int]] = {}
        self._file = -1
        self._path: Path | None = None
        self._size = self._floor = 0
        self._head = self._part = 0
        self._retiring: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"RequestLog({self._path or 'closed'}, {len(self._live)} requests, {self._size} B)"

    @property
    def size(self) -> int:
        """Bytes in the current file."""
        return self._size

    def open(self, directory: Path, head: int, kept: Iterable[Kept] = ()) -> None:
        """Begin the log of the head of this number with what it has taken over.

        The logs of earlier heads are deleted, once that is on disk.
        """
        before = []
        try:
            before = log_files(directory)
            mine = [p for p in before if int(p.name.split(".")[1]) >= head]
            for request in kept:
                self._add(request)
            self._head, self._part = head, len(mine)
            self._begin(directory, [path for path in before if path not in mine])
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Nothing is written any more. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._retiring is not None:
            self._retiring.join()
            self._retiring = None

    def opened(self, kept: Kept) -> None:
        """A request was admitted; its logs are read again when this log is rewritten."""
        if self._file >= 0:
            self._add(kept)
            self._write([kept.opened])

    def produced(self, items: Sequence[Item]) -> None:
        """What one message of an AW added to sequences of open requests."""
        if self._file >= 0:
            self._write([Produced(list(items))])

    def ended(self, request: str, error: TarragonError | None) -> None:
        """A sequence ended by an error, or (None) at a stop string."""
        if self._file < 0:
            return
        line = Ended(request, None if error is None else record(error))
        if (place := self._places.get(request)) is not None:
            kept, position = place
            kept.ended[position] = line
        self._write([line])

    def forgotten(self, name: str) -> None:
        """Nobody can come back to a request; named by its first sequence."""
        kept = self._live.pop(name, None)
        if kept is None:
            return
        for sequence in kept.opened.sequences:
            self._places.pop(sequence, None)
        if self._file >= 0:
            self._write([Forgotten(name)])

    def _add(self, kept: Kept) -> None:
        self._live[kept.name] = kept
        self._places |= {name: (kept, i) for i, name in enumerate(kept.opened.sequences)}

    def _write(self, lines: Iterable[Line]) -> None:
        try:
            self._append(b"".join(map(encode, lines)))
            if self._size > max(self._min_bytes, 2 * self._floor) and self._path is not None:
                self._begin(self._path.parent, [self._path])
        except OSError as error:
            self._give_up(error)

    def _append(self, data: bytes) -> None:
        self._size += len(data)
        while data:
            data = data[os.write(self._file, data) :]

    def _begin(self, directory: Path, before: list[Path]) -> None:
        """Go on in a new file, which says all that is known; those before are then deleted."""
        self._part += 1
        part = "" if self._part == 1 else f".{self._part}"
        path = directory / f"requests.{self._head}{part}.jsonl"
        file = os.open(path, _CREATE, 0o600)
        old, self._file, self._path, self._size = self._file, file, path, 0
        if old >= 0:
            os.close(old)
        for kept in self._live.values():
            self._append(b"".join(map(encode, restated(kept))))
        self._floor = self._size
        if before:
            if self._retiring is not None:
                self._retiring.join()
            # On a slow filesystem a sync takes long; tokens do not wait for it.
            self._retiring = threading.Thread(
                target=_retire, args=(os.dup(file), before), name="request-log", daemon=True
            )
            self._retiring.start()

    def _give_up(self, error: OSError) -> None:
        where = self._path or "the request log"
        _log.error(
            "%s: cannot be written, so requests do not survive this head: %s",
            where,
            error.strerror or error,
        )
        self.close()


def _retire(file: int, before: list[Path]) -> None:
    """Delete files whose content is in a newer one, once that is on disk."""
    try:
        os.fsync(file)
        for path in before:
            path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("an old request log stays: %s", error)
    finally:
        os.close(file)
